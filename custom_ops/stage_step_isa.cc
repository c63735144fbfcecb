// SPDX-License-Identifier: Apache-2.0
// The kernel of a stage's step. It is compiled once for each instruction set, with
// KERAS_BRANCHY_ISA naming the namespace; stage_step.cc chooses at run time.
//
// Everything is computed in double, as in NumPy: scores are those of
// `criteria.gate_scores` after rounding to float.
#include "lanes.h"
#include "stage_step.h"

namespace keras_branchy {
namespace {

typedef Lanes<double> L;
constexpr int kRows = 32;  // of a tile, at most
// Numbers of a tile: 32 KiB twice, and never less than a row.
constexpr int64_t kNumbers = kMostStepClasses;

enum Criterion { kEntropy, kMaxProbability, kMargin, kDistance, kLearned };

// What is known of some rows.
struct Tile {
  double d[kNumbers + L::kCount];  // z - m, m the largest logit of the row
  double e[kNumbers + L::kCount];  // e^d
  double largest[kRows];
  double rest[kRows];      // the sum of e without that of the largest
  double weighted[kRows];  // the sum of e·d
  double margin[kRows];    // of the two largest probabilities
  float score[kRows];
  int64_t label[kRows];
};

bool AllFinite(const float* from, int64_t count) {
  // x·0 is 0, or NaN where x is not finite.
  Floats sum[2] = {};
  int64_t i = 0;
  for (; i + 2 * Lanes<float>::kCount <= count; i += 2 * Lanes<float>::kCount) {
    sum[0] += Load(from + i) * 0.0f;
    sum[1] += Load(from + i + Lanes<float>::kCount) * 0.0f;
  }
  float tail = 0.0f;
  for (; i < count; ++i) tail += from[i] * 0.0f;
  return Sum<float>(sum[0] + sum[1]) + tail == 0.0f;
}

int64_t Best(const float* row, int64_t classes) {
  int64_t best = 0;
  for (int64_t c = 1; c < classes; ++c) best = row[c] > row[best] ? c : best;
  return best;
}

int64_t BestOfMany(const float* row, int64_t classes) {
  constexpr int kCount = Lanes<float>::kCount;
  Floats largest = Load(row);
  int64_t c = kCount;
  for (; c + kCount <= classes; c += kCount) largest = Larger(Load(row + c), largest);
  float top = Max<float>(largest);
  for (; c < classes; ++c) top = row[c] > top ? row[c] : top;
  for (c = 0; row[c] != top;) ++c;
  return c;
}

void Exponentials(const float* logits, int64_t classes, int rows, Tile* tile) {
  for (int r = 0; r < rows; ++r) {
    const float* row = logits + r * classes;
    const int64_t best = classes < 32 ? Best(row, classes) : BestOfMany(row, classes);
    const double largest = row[best];
    double* d = tile->d + r * classes;
    for (int64_t c = 0; c < classes; ++c) d[c] = row[c] - largest;
    tile->label[r] = best;
    tile->largest[r] = largest;
  }
  const int64_t numbers = rows * classes;
  for (int i = 0; i < L::kCount; ++i) tile->d[numbers + i] = 0.0;
  for (int64_t i = 0; i < numbers; i += L::kCount) {
    Doubles d = Load(tile->d + i);
    const Doubles e = Exp<double>(&d);
    memcpy(tile->d + i, &d, sizeof(d));
    memcpy(tile->e + i, &e, sizeof(e));
  }
}

template <bool kWeighted>
void SumRows(int64_t classes, int rows, Tile* tile) {
  for (int r = 0; r < rows; ++r) {
    const double* e = tile->e + r * classes;
    const double* d = tile->d + r * classes;
    // Four sums, or each addition would wait for the one before.
    double rest[4] = {}, weighted[4] = {};
    const int64_t label = tile->label[r];
    int64_t c = 0;
    for (; c + 4 <= classes; c += 4) {
      for (int k = 0; k < 4; ++k) {
        // Without the largest, which is 1, or a small sum would be lost beside it.
        rest[k] += c + k == label ? 0.0 : e[c + k];
        if (kWeighted) weighted[k] += e[c + k] * d[c + k];
      }
    }
    for (; c < classes; ++c) {
      rest[0] += c == label ? 0.0 : e[c];
      if (kWeighted) weighted[0] += e[c] * d[c];
    }
    tile->rest[r] = (rest[0] + rest[1]) + (rest[2] + rest[3]);
    tile->weighted[r] = (weighted[0] + weighted[1]) + (weighted[2] + weighted[3]);
  }
}

void Margins(int64_t classes, int rows, Tile* tile) {
  for (int r = 0; r < rows; ++r) {
    const double* d = tile->d + r * classes;
    double second = -kInfinity;
    for (int64_t c = 0; c < classes; ++c) {
      second = c != tile->label[r] && d[c] > second ? d[c] : second;
    }
    tile->margin[r] = -__builtin_expm1(second) / (1.0 + tile->rest[r]);
  }
}

// 1 / (1 + e^-x) without overflow.
double Logistic(double x) {
  const double e = __builtin_exp(x < 0.0 ? x : -x);
  return (x < 0.0 ? e : 1.0) / (1.0 + e);
}

void Score(const StageStep& step, int rows, Tile* tile) {
  const bool margins = step.criterion == kMargin || step.criterion == kLearned;
  if (step.criterion == kEntropy || step.criterion == kLearned) {
    SumRows<true>(step.classes, rows, tile);
  } else {
    SumRows<false>(step.classes, rows, tile);
  }
  if (margins) Margins(step.classes, rows, tile);
  double entropy[kRows];
  if (step.criterion == kEntropy || step.criterion == kLearned) {
    for (int r = rows; r % L::kCount != 0; ++r) tile->rest[r] = tile->weighted[r] = 0.0;
    for (int r = 0; r < rows; r += L::kCount) {
      const Doubles rest = Load(tile->rest + r);
      const Doubles found =
          Log1p<double>(rest) - Load(tile->weighted + r) / (rest + 1.0);
      memcpy(entropy + r, &found, sizeof(found));
    }
  }
  for (int r = 0; r < rows; ++r) {
    const double surest = 1.0 / (1.0 + tile->rest[r]);
    switch (step.criterion) {
      case kEntropy:
        tile->score[r] = static_cast<float>(entropy[r]);
        break;
      case kMaxProbability:
        tile->score[r] = static_cast<float>(surest);
        break;
      case kMargin:
        tile->score[r] = static_cast<float>(tile->margin[r]);
        break;
      case kDistance:
        tile->score[r] = static_cast<float>(tile->largest[r]);
        break;
      default: {
        const double* of = step.coefficients;
        tile->score[r] = static_cast<float>(Logistic(
            of[0] + of[1] * surest + of[2] * entropy[r] + of[3] * tile->margin[r]));
      }
    }
  }
}

// Whether a sample leaves; counts agreeing exits on the way.
bool Leaves(const StageStep& step, int64_t row, float score, int64_t label) {
  const float threshold = static_cast<float>(step.threshold);
  bool leaves = step.criterion == kEntropy ? score < threshold : score >= threshold;
  if (step.patience > 0) {
    const StageAnswers& to = *step.answers;
    to.agreed[row] = to.previous[row] == label ? to.agreed[row] + 1 : 1;
    to.previous[row] = label;
    leaves = leaves || to.agreed[row] >= step.patience;
  }
  return leaves;
}

void Answer(const StageStep& step, const Tile& tile, int r, int64_t row) {
  const StageAnswers& to = *step.answers;
  to.labels[row] = tile.label[r];
  to.exits[row] = step.stage;
  to.scores[row] = tile.score[r];
  const double* e = tile.e + r * step.classes;
  float* probabilities = to.probabilities + row * step.classes;
  const double share = 1.0 / (1.0 + tile.rest[r]);
  for (int64_t c = 0; c < step.classes; ++c) {
    probabilities[c] = static_cast<float>(e[c] * share);
  }
}

// The numbers of the samples of a chunk.
struct Numbers {
  const int64_t* who;  // or null
  int64_t start;
  int64_t operator[](int64_t row) const { return who ? who[row] : start + row; }
};

// Rows [begin, end) of the chunk stay, as the `stayed`th and so on.
void Keep(const StageStep& step, const Numbers& who, int64_t begin, int64_t end,
          int64_t stayed) {
  const int64_t count = end - begin, at = step.end + stayed;
  for (int64_t i = 0; i < count; ++i) step.waiting[at + i] = who[begin + i];
  for (int64_t t = 0; t < step.tensors; ++t) {
    const int64_t bytes = step.bytes[t];
    memcpy(step.to[t] + at * bytes, step.from[t] + begin * bytes, count * bytes);
  }
}

}  // namespace

namespace KERAS_BRANCHY_ISA {

int64_t Step(const StageStep& step, const float* logits, const int64_t* who,
             int64_t start, int64_t rows) {
  const KeepDenormals keep;
  (void)keep;
  if (!AllFinite(logits, rows * step.classes)) return -1;
  const int64_t fitting = kNumbers / step.classes;
  const int most = fitting < kRows ? static_cast<int>(fitting) : kRows;
  Tile tile;
  const Numbers numbers{who, start};
  int64_t stayed = 0, kept = 0;  // of `stayed` rows, those before `kept` are copied
  int64_t run = 0;               // where the rows began that stay and follow each other
  for (int64_t first = 0; first < rows; first += most) {
    const int count = rows - first < most ? static_cast<int>(rows - first) : most;
    Exponentials(logits + first * step.classes, step.classes, count, &tile);
    Score(step, count, &tile);
    for (int r = 0; r < count; ++r) {
      const int64_t row = numbers[first + r] - step.answers->first;
      if (step.is_last || Leaves(step, row, tile.score[r], tile.label[r])) {
        if (stayed > kept) Keep(step, numbers, run, first + r, kept);
        kept = stayed;
        run = first + r + 1;
        Answer(step, tile, r, row);
      } else {
        ++stayed;
      }
    }
  }
  if (stayed > kept) Keep(step, numbers, run, rows, kept);
  return stayed;
}

}  // namespace KERAS_BRANCHY_ISA
}  // namespace keras_branchy
