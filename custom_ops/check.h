// SPDX-License-Identifier: Apache-2.0
// What cpu_check and cuda_check share: hostile logits, the gate in float64, and the
// comparison. It shares no code with the kernels.
#ifndef KERAS_BRANCHY_CHECK_H_
#define KERAS_BRANCHY_CHECK_H_

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <limits>
#include <vector>

#include "exit_gate.h"

namespace keras_branchy {
namespace check {

constexpr Criterion kCriteria[] = {Criterion::kEntropy, Criterion::kMaxProbability,
                                   Criterion::kMargin, Criterion::kDistance};
constexpr Storage kStorages[] = {Storage::kFloat32, Storage::kFloat16,
                                 Storage::kBfloat16, Storage::kFloat64};
constexpr const char* kCriterionNames[] = {"entropy", "max_probability", "margin",
                                           "distance"};
constexpr const char* kStorageNames[] = {"float32", "float16", "bfloat16", "float64"};

// ---- Logits -------------------------------------------------------------------------
class Random {  // xorshift64*
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435769u + 1) {}
  uint64_t Bits() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 2685821657736338717ull;
  }
  double Uniform() { return static_cast<double>(Bits() >> 11) * 0x1p-53; }
  // The sum of four uniforms, scaled to variance 1.
  double Normal() {
    return (Uniform() + Uniform() + Uniform() + Uniform() - 2.0) * 1.7320508;
  }

 private:
  uint64_t state_;
};

constexpr int kKinds = 13;

// One row of the given kind of trouble.
inline void FillRow(int kind, int64_t classes, Random* random, double* row) {
  const double infinity = std::numeric_limits<double>::infinity();
  constexpr double kScale[] = {1.0, 30.0, 1e4, 1e-3, 1e-39};
  const double scale = kind < 5 ? kScale[kind] : 3.0;
  for (int64_t c = 0; c < classes; ++c) row[c] = scale * random->Normal();
  const int64_t at = static_cast<int64_t>(random->Bits() % classes);
  switch (kind) {
    case 5:  // all equal
      for (int64_t c = 0; c < classes; ++c) row[c] = 2.5;
      break;
    case 6:  // one-hot
      for (int64_t c = 0; c < classes; ++c) row[c] = c == at ? 20.0 : 0.0;
      break;
    case 7:  // a tie of the largest
      row[at] = row[classes - 1] = 12.0;
      break;
    case 8:  // most are -inf
      for (int64_t c = 0; c < classes; ++c) {
        if (c != at && random->Uniform() < 0.8) row[c] = -infinity;
      }
      break;
    case 9:  // nothing but -inf
      for (int64_t c = 0; c < classes; ++c) row[c] = -infinity;
      break;
    case 10:
      row[at] = infinity;
      break;
    case 11:
      row[at] = std::numeric_limits<double>::quiet_NaN();
      break;
    case 12:  // nothing but NaN and -inf
      for (int64_t c = 0; c < classes; ++c) row[c] = -infinity;
      row[at] = std::numeric_limits<double>::quiet_NaN();
      break;
  }
}

// ---- Storage ------------------------------------------------------------------------
inline uint32_t FloatBits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float BitsFloat(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// The value of a float16 pattern, by the definition of the format.
inline double HalfValue(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) {
    return fraction ? std::numeric_limits<double>::quiet_NaN()
                    : sign * std::numeric_limits<double>::infinity();
  }
  return exponent ? sign * ldexp(1024 + fraction, exponent - 25)
                  : sign * ldexp(fraction, -24);
}

// A float16 pattern near x; how it is rounded does not matter here.
inline uint16_t HalfBits(double x) {
  const uint16_t sign = signbit(x) ? 0x8000 : 0;
  if (isnan(x)) return 0x7e01;
  const double magnitude = fabs(x);
  if (isinf(x)) return sign | 0x7c00;
  if (magnitude >= 65504.0) return sign | 0x7bff;
  if (magnitude < 0x1p-14) return sign | static_cast<uint16_t>(magnitude * 0x1p24);
  int exponent;
  const double fraction = frexp(magnitude, &exponent);  // in [0.5, 1)
  return sign | static_cast<uint16_t>((exponent + 14) << 10) |
         (static_cast<uint16_t>(fraction * 2048.0) & 1023);
}

// Stores x and returns the value that was stored.
inline double Store(Storage storage, double x, void* logits, int64_t index) {
  switch (storage) {
    case Storage::kFloat64:
      return static_cast<double*>(logits)[index] = x;
    case Storage::kFloat32:
      return static_cast<float*>(logits)[index] = static_cast<float>(x);
    case Storage::kFloat16:
      static_cast<uint16_t*>(logits)[index] = HalfBits(x);
      return HalfValue(HalfBits(x));
    case Storage::kBfloat16: {
      // A NaN keeps a quiet pattern with a payload bit that survives.
      const uint32_t bits = isnan(x) ? 0x7fc10000u : FloatBits(static_cast<float>(x));
      static_cast<uint16_t*>(logits)[index] = static_cast<uint16_t>(bits >> 16);
      return BitsFloat(bits >> 16 << 16);
    }
  }
  return 0.0;
}

// ---- The gate in float64 ------------------------------------------------------------
struct Answer {
  double score;
  int64_t label;
};

inline Answer Expected(const double* row, int64_t classes, Criterion criterion) {
  const double infinity = std::numeric_limits<double>::infinity();
  Answer answer = {std::numeric_limits<double>::quiet_NaN(), 0};
  double largest = -infinity;
  bool broken = false;
  for (int64_t c = 0; c < classes; ++c) {
    broken = broken || isnan(row[c]) || row[c] == infinity;
    if (row[c] > largest) {
      largest = row[c];
      answer.label = c;
    }
  }
  if (broken || largest == -infinity) return answer;
  double rest = 0.0, weighted = 0.0, second = -infinity;
  for (int64_t c = 0; c < classes; ++c) {
    if (c == answer.label) continue;
    const double d = row[c] - largest;
    const double e = exp(d);
    rest += e;
    if (e > 0.0) weighted += e * d;
    if (d > second) second = d;
  }
  switch (criterion) {
    case Criterion::kEntropy:
      answer.score = log1p(rest) - weighted / (1.0 + rest);
      break;
    case Criterion::kMaxProbability:
      answer.score = 1.0 / (1.0 + rest);
      break;
    case Criterion::kMargin:
      answer.score = -expm1(second) / (1.0 + rest);
      break;
    case Criterion::kDistance:
      answer.score = largest;
      break;
  }
  return answer;
}

// ---- Comparison ---------------------------------------------------------------------
struct Case {
  Storage storage;
  Criterion criterion;
  int64_t rows, classes;
  std::vector<char> logits;
  std::vector<Answer> answers;
  float threshold;
};

inline Case MakeCase(Storage storage, Criterion criterion, int64_t rows,
                     int64_t classes) {
  Case made = {storage, criterion, rows, classes, {}, {}, 0.0f};
  made.logits.resize(rows * classes * ElementBytes(storage));
  Random random(rows * 7919 + classes);
  std::vector<double> row(classes);
  for (int64_t r = 0; r < rows; ++r) {
    FillRow(static_cast<int>((r + classes) % kKinds), classes, &random, row.data());
    for (int64_t c = 0; c < classes; ++c) {
      row[c] = Store(storage, row[c], made.logits.data(), r * classes + c);
    }
    made.answers.push_back(Expected(row.data(), classes, criterion));
    const double score = made.answers.back().score;
    if (isfinite(score) && random.Uniform() < 0.2) {
      made.threshold = static_cast<float>(score);
    }
  }
  return made;
}

// The relative error that float32 arithmetic may leave: a few units in the last place,
// and z - m rounds by 6e-8 of itself, which moves e^(z-m) by |z-m| times as much.
inline double Tolerance(double score) {
  return 1e-6 + 1.2e-7 * fabs(log(fabs(score) + 1e-30));
}

struct Tally {
  int64_t rows = 0, wrong = 0;
  double worst = 0.0;  // relative error of a score, as a fraction of the tolerance
};

inline void Compare(const Case& made, const bool* exits, const int64_t* labels,
                    const float* scores, Tally* tally) {
  for (int64_t r = 0; r < made.rows; ++r) {
    const Answer& want = made.answers[r];
    const double score = scores[r];
    bool good = labels[r] == want.label && isnan(score) == isnan(want.score);
    if (!isnan(want.score)) {
      // Below 1e-30 a term of float32 is 0; scores of that size mean nothing.
      const double error =
          fabs(score - want.score) / (fabs(want.score) + 1e-30) / Tolerance(want.score);
      if (error > tally->worst) tally->worst = error;
      good = good && error <= 1.0;
    }
    const bool leaves = made.criterion == Criterion::kEntropy
                            ? scores[r] < made.threshold
                            : scores[r] >= made.threshold;
    good = good && exits[r] == leaves;
    ++tally->rows;
    if (!good && ++tally->wrong <= 10) {
      printf(
          "wrong: %s %s [%lld, %lld] row %lld: exit %d label %lld score %.9g, "
          "expected label %lld score %.9g\n",
          kStorageNames[static_cast<int>(made.storage)],
          kCriterionNames[static_cast<int>(made.criterion)],
          static_cast<long long>(made.rows), static_cast<long long>(made.classes),
          static_cast<long long>(r), exits[r], static_cast<long long>(labels[r]), score,
          static_cast<long long>(want.label), want.score);
    }
  }
}

}  // namespace check
}  // namespace keras_branchy

#endif  // KERAS_BRANCHY_CHECK_H_
