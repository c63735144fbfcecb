// SPDX-License-Identifier: Apache-2.0
// Vectors of the width that the translation unit is compiled for, and the functions
// of them that the exit gate needs. Every name is local to the translation unit: one
// inline function shared between units would run AVX-512 on a machine without it.
#ifndef KERAS_BRANCHY_LANES_H_
#define KERAS_BRANCHY_LANES_H_

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace keras_branchy {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

constexpr double kLn2 = 0.693147180559945309417;
constexpr double kLog2e = 1.442695040888963407360;
constexpr double kInfinity = __builtin_inf();

template <class Real>
struct Lanes;

template <>
struct Lanes<float> {
  static constexpr int kCount = kVectorBytes / 4;
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Integer;
  typedef Integer Integers __attribute__((vector_size(kVectorBytes)));
  // Of as many lanes, for what a row gives.
  typedef float Scores __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Decisions __attribute__((vector_size(kVectorBytes)));
  typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes / 4)));
  static constexpr int kMantissaBits = 23;
  static constexpr int kBias = 127;
  // (e^r - 1) / r for |r| <= ln(2)/2, least relative error of e^r: 1.1e-7.
  static constexpr float kExp[] = {1.0f, 0.499992303091f, 0.166671153889f,
                                   0.041890331574f, 0.008312501289f};
  static constexpr int kLogTerms = 4;
};

template <>
struct Lanes<double> {
  static constexpr int kCount = kVectorBytes / 8;
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Integer;
  typedef Integer Integers __attribute__((vector_size(kVectorBytes)));
  typedef float Scores __attribute__((vector_size(kVectorBytes / 2)));
  typedef int32_t Decisions __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes / 8)));
  static constexpr int kMantissaBits = 52;
  static constexpr int kBias = 1023;
  // 1 / k!: the next term is 2e-16 of e^r.
  static constexpr double kExp[] = {1.0,           1.0 / 2,        1.0 / 6,
                                    1.0 / 24,      1.0 / 120,      1.0 / 720,
                                    1.0 / 5040,    1.0 / 40320,    1.0 / 362880,
                                    1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600};
  static constexpr int kLogTerms = 10;
};

template <class Real>
using Vector = typename Lanes<Real>::Vector;
template <class Real>
using Integers = typename Lanes<Real>::Integers;
using Floats = Vector<float>;
using Doubles = Vector<double>;

// ---- Storage ------------------------------------------------------------------------
struct Half {
  typedef float Real;
  uint16_t bits;
};
struct Bfloat16 {
  typedef float Real;
  uint16_t bits;
};
template <class Stored>
struct RealOf {
  typedef typename Stored::Real Type;
};
template <>
struct RealOf<float> {
  typedef float Type;
};
template <>
struct RealOf<double> {
  typedef double Type;
};

template <class Real>
inline Vector<Real> Fill(Real x) {
  return Vector<Real>{} + x;
}

// As many 16-bit patterns as a vector of float has lanes.
typedef uint16_t Patterns __attribute__((vector_size(kVectorBytes / 2)));

inline Floats ToFloats(Patterns x, Bfloat16) {
  return (Floats)(__builtin_convertvector(x, Integers<float>) << 16);
}
inline Floats ToFloats(Patterns x, Half) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps((__m256i)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_cvtph_ps((__m128i)x);
#else
  typedef Integers<float> I;
  const I bits = __builtin_convertvector(x, I);
  const I magnitude = bits & 0x7fff;
  const I normal = (magnitude << 13) + (112 << 23);
  const I special = (magnitude << 13) | (255 << 23);  // inf and NaN
  const I tiny = (I)(__builtin_convertvector(magnitude, Floats) * 0x1p-24f);
  const I value = magnitude >= 0x7c00 ? special : magnitude < 0x400 ? tiny : normal;
  return (Floats)(value | (bits & 0x8000) << 16);
#endif
}

inline Floats Load(const float* from) {
  Floats lanes;
  memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}
inline Doubles Load(const double* from) {
  Doubles lanes;
  memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}
inline Floats Load(const Half* from) {
  Patterns lanes;
  memcpy(&lanes, from, sizeof(lanes));
  return ToFloats(lanes, Half());
}
inline Floats Load(const Bfloat16* from) {
  Patterns lanes;
  memcpy(&lanes, from, sizeof(lanes));
  return ToFloats(lanes, Bfloat16());
}

inline void SetLowest(float* to) { *to = -__builtin_inff(); }
inline void SetLowest(double* to) { *to = -__builtin_inf(); }
inline void SetLowest(Half* to) { to->bits = 0xfc00; }
inline void SetLowest(Bfloat16* to) { to->bits = 0xff80; }

// The first `count` of them, fewer than a vector has lanes, and -inf in the other
// lanes; reads nothing beyond.
template <class Stored>
inline Vector<typename RealOf<Stored>::Type> LoadPart(const Stored* from,
                                                      int64_t count) {
  constexpr int kCount = Lanes<typename RealOf<Stored>::Type>::kCount;
#if defined(__AVX512F__)
  const uint32_t wanted = (1u << count) - 1;
  if constexpr (__is_same(Stored, float)) {
    const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
    return (Floats)_mm512_mask_loadu_ps(lowest, static_cast<__mmask16>(wanted), from);
  } else if constexpr (sizeof(Stored) == 2) {
    Stored lowest;
    SetLowest(&lowest);
    return ToFloats((Patterns)_mm256_mask_loadu_epi16(
                        _mm256_set1_epi16(static_cast<int16_t>(lowest.bits)),
                        static_cast<__mmask16>(wanted), from),
                    Stored());
  }
#elif defined(__AVX2__)
  if constexpr (__is_same(Stored, float)) {
    const Integers<float> lane = {0, 1, 2, 3, 4, 5, 6, 7};
    const Integers<float> wanted = lane < static_cast<int>(count);
    const Floats lanes = (Floats)_mm256_maskload_ps(from, (__m256i)wanted);
    return wanted ? lanes : Fill<float>(-__builtin_inff());
  }
#endif
  Stored lanes[kCount];
  for (int i = 0; i < kCount; ++i) {
    if (i < count) {
      lanes[i] = from[i];
    } else {
      SetLowest(&lanes[i]);
    }
  }
  return Load(lanes);
}

template <class Stored>
inline Vector<typename RealOf<Stored>::Type> Load(const Stored* from, int64_t count) {
  constexpr int kCount = Lanes<typename RealOf<Stored>::Type>::kCount;
  return count >= kCount ? Load(from) : LoadPart(from, count);
}

// ---- Arithmetic ---------------------------------------------------------------------
// a > b ? a : b, so b where either is NaN.
inline Floats Larger(Floats a, Floats b) {
#if defined(__AVX512F__)
  return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__x86_64__)
  return (Floats)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}
inline Doubles Larger(Doubles a, Doubles b) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  return (Doubles)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__x86_64__)
  return (Doubles)_mm_max_pd((__m128d)a, (__m128d)b);
#else
  return a > b ? a : b;
#endif
}

template <class Real>
inline Real Max(Vector<Real> x) {
  Real lanes[Lanes<Real>::kCount];
  memcpy(lanes, &x, sizeof(x));
  for (int width = Lanes<Real>::kCount / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
    }
  }
  return lanes[0];
}

template <class Real>
inline Real Sum(Vector<Real> x) {
  Real lanes[Lanes<Real>::kCount];
  memcpy(lanes, &x, sizeof(x));
  for (int width = Lanes<Real>::kCount / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// The first lane that equals `value`, or the number of lanes.
template <class Real>
inline int FirstEqual(Vector<Real> x, Real value) {
#if defined(__AVX512F__)
  if constexpr (__is_same(Real, float)) {
    const __mmask16 equal =
        _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(value), _CMP_EQ_OQ);
    return equal ? __builtin_ctz(equal) : Lanes<Real>::kCount;
  }
#elif defined(__AVX2__)
  if constexpr (__is_same(Real, float)) {
    const int equal =
        _mm256_movemask_ps(_mm256_cmp_ps((__m256)x, _mm256_set1_ps(value), _CMP_EQ_OQ));
    return equal ? __builtin_ctz(equal) : Lanes<Real>::kCount;
  }
#endif
  int lane = 0;
  while (lane < Lanes<Real>::kCount && x[lane] != value) ++lane;
  return lane;
}

// (e^r - 1) / r for |r| <= ln(2)/2.
template <class Real>
inline Vector<Real> ExpQuotient(Vector<Real> r) {
  constexpr int kDegree = sizeof(Lanes<Real>::kExp) / sizeof(Real);
  Vector<Real> sum = Fill<Real>(Lanes<Real>::kExp[kDegree - 1]);
#pragma GCC unroll 16
  for (int k = kDegree - 2; k >= 0; --k) sum = sum * r + Lanes<Real>::kExp[k];
  return sum;
}

// d = n·ln 2 + r with n a whole number and |r| <= ln(2)/2. Adding 1.5·2^p rounds to a
// whole number and leaves it in the low bits.
template <class Real>
inline Vector<Real> SplitExponent(Vector<Real> d, Vector<Real>* shifted,
                                  Vector<Real>* n) {
  constexpr Real kShift =
      Real(3ll << (Lanes<Real>::kMantissaBits - 1)) + Lanes<Real>::kBias;
  *shifted = d * Real(kLog2e) + kShift;
  *n = *shifted - kShift;
  return d - *n * Real(kLn2);
}

// e^d for d <= 0, exactly 0 where it is below the normal numbers; NaN stays. `d` is
// clamped to a finite value, so that e^d·d is 0 where e^d is.
template <class Real>
inline Vector<Real> Exp(Vector<Real>* d) {
  constexpr int kBits = Lanes<Real>::kMantissaBits;
  *d = Larger(Fill<Real>(-Lanes<Real>::kBias * kLn2), *d);
  Vector<Real> shifted, n;
  const Vector<Real> r = SplitExponent<Real>(*d, &shifted, &n);
  const Vector<Real> power = (Vector<Real>)((Integers<Real>)shifted << kBits);
  return (ExpQuotient<Real>(r) * r + Real(1)) * power;
}

#if defined(__AVX512F__)
template <>
inline Floats Exp<float>(Floats* d) {
  *d = Larger(Fill<float>(-105.0f), *d);  // e^-105 rounds to 0
  Floats shifted, n;
  const Floats r = SplitExponent<float>(*d, &shifted, &n);
  const Floats mantissa = ExpQuotient<float>(r) * r + 1.0f;
  return (Floats)_mm512_scalef_ps((__m512)mantissa, (__m512)n);
}
#endif

// e^d - 1 for d <= 0, to full relative precision.
template <class Real>
inline Vector<Real> Expm1(Vector<Real> d) {
  constexpr int kBits = Lanes<Real>::kMantissaBits;
  d = Larger(Fill<Real>(-Lanes<Real>::kBias * kLn2), d);
  Vector<Real> shifted, n;
  const Vector<Real> r = SplitExponent<Real>(d, &shifted, &n);
  const Vector<Real> power = (Vector<Real>)((Integers<Real>)shifted << kBits);
  return ExpQuotient<Real>(r) * r * power + (power - Real(1));
}

// ln(1 + x) for x >= 0, to full relative precision.
template <class Real>
inline Vector<Real> Log1p(Vector<Real> x) {
  constexpr int kBits = Lanes<Real>::kMantissaBits;
  const Vector<Real> u = x + Real(1);
  // u = 2^k·(1 + f) with 1 + f in [√½, √2).
  const Integers<Real> root = (Integers<Real>)Fill<Real>(Real(0.70710678118654752440));
  const Integers<Real> above = (Integers<Real>)u - root;
  const Integers<Real> k = above >> kBits;
  const Vector<Real> f = (Vector<Real>)((Integers<Real>)u - (k << kBits)) - Real(1);
  // ln(1 + f) = 2·artanh(s) with s = f / (2 + f).
  const Vector<Real> s = f / (f + Real(2));
  Vector<Real> series = Vector<Real>{};
#pragma GCC unroll 16
  for (int term = Lanes<Real>::kLogTerms; term >= 1; --term) {
    series = (series + Real(2) / Real(2 * term + 1)) * (s * s);
  }
  // x - (u - 1) is what the sum 1 + x lost.
  const Vector<Real> lost = (x - (u - Real(1))) / u;
  return (f - s * (f - series)) + lost +
         __builtin_convertvector(k, Vector<Real>) * Real(kLn2);
}

// TensorFlow's threads flush denormals to zero, which would make unequal denormal
// logits ties. Results must not depend on the caller's mode.
class KeepDenormals {
 public:
#if defined(__x86_64__)
  KeepDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~0x8040u); }
  ~KeepDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

// ---- Transposition ------------------------------------------------------------------
#if defined(__AVX512F__)
// 16 rows of 16 to columns: four rounds that interleave vector i with vector i + 8.
inline void Transpose(Floats* x) {
  const __m512i low =
      _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
    Floats y[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      y[2 * i] = (Floats)_mm512_permutex2var_ps((__m512)x[i], low, (__m512)x[i + 8]);
      y[2 * i + 1] =
          (Floats)_mm512_permutex2var_ps((__m512)x[i], high, (__m512)x[i + 8]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) x[i] = y[i];
  }
}
#endif

#if defined(__AVX2__) && !defined(__AVX512F__)
// 8 rows of 8 to columns: 1x1, 2x2 and 4x4 blocks change sides.
inline void Transpose(Floats* x) {
  __m256 y[8], w[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    y[i] = _mm256_unpacklo_ps((__m256)x[i], (__m256)x[i + 1]);
    y[i + 1] = _mm256_unpackhi_ps((__m256)x[i], (__m256)x[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    w[i] = _mm256_shuffle_ps(y[i], y[i + 2], 0x44);
    w[i + 1] = _mm256_shuffle_ps(y[i], y[i + 2], 0xee);
    w[i + 2] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0x44);
    w[i + 3] = _mm256_shuffle_ps(y[i + 1], y[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[i] = (Floats)_mm256_permute2f128_ps(w[i], w[i + 4], 0x20);
    x[i + 4] = (Floats)_mm256_permute2f128_ps(w[i], w[i + 4], 0x31);
  }
}
#endif

template <class Vectors>
inline void Transpose(Vectors* x) {
  constexpr int kCount = sizeof(Vectors) / sizeof((*x)[0]);
  for (int i = 0; i < kCount; ++i) {
    for (int j = i + 1; j < kCount; ++j) {
      const auto swap = x[i][j];
      x[i][j] = x[j][i];
      x[j][i] = swap;
    }
  }
}

}  // namespace
}  // namespace keras_branchy

#endif  // KERAS_BRANCHY_LANES_H_
