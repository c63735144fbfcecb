// SPDX-License-Identifier: Apache-2.0
// The CPU kernel of the exit gate. It is compiled once for each instruction set, with
// KERAS_BRANCHY_ISA naming the namespace; exit_gate_cpu.cc chooses at run time.
//
// Rows of few classes are taken a tile at a time, one row to a vector lane, so that no
// lane idles and nothing is summed across lanes. Rows of many classes are taken one by
// one, in chunks that stay in the first-level cache: a chunk's maximum, then its terms.
#include "exit_gate.h"
#include "lanes.h"

namespace keras_branchy {
namespace {

// A tile of this many classes fits the first-level cache; beyond, lanes fill anyway.
constexpr int kTileClasses = 256;
// Elements between two folds of the float sums into double; 16 KiB of float.
constexpr int64_t kChunk = 4096;

// What is known of as many rows as a vector has lanes.
template <class Real>
struct RowSums {
  static constexpr int kRows = Lanes<Real>::kCount;
  Real largest[kRows];   // m, the largest logit; -inf if there is none
  Real second[kRows];    // the largest but that one element; margin only
  Real rest[kRows];      // Σ e^(z-m) without that one element; NaN if a logit is NaN
  Real weighted[kRows];  // Σ e^(z-m)·(z-m); entropy only
  int64_t label[kRows];
};

// What is subtracted from a row's logits: m, or 0 where m would give -inf - -inf.
template <class Real>
inline Vector<Real> Origin(Vector<Real> largest) {
  return largest == Real(-kInfinity) ? Vector<Real>{} : largest;
}

// ---- One row to a lane --------------------------------------------------------------
// [rows, classes] -> columns[class][row]; lanes beyond `rows` repeat the last row.
template <class Stored, class Real>
inline void LoadTile(const Stored* logits, int64_t classes, int64_t rows,
                     Vector<Real>* columns) {
  constexpr int kCount = Lanes<Real>::kCount;
  for (int64_t first = 0; first < classes; first += kCount) {
    Vector<Real> block[kCount];
    const Stored* from = logits + first;
    const int64_t left = classes - first;
    if (rows >= kCount && left >= kCount) {
#pragma GCC unroll 16
      for (int row = 0; row < kCount; ++row) block[row] = Load(from + row * classes);
    } else if (rows >= kCount) {
#pragma GCC unroll 16
      for (int row = 0; row < kCount; ++row) {
        block[row] = LoadPart(from + row * classes, left);
      }
    } else {
#pragma GCC unroll 16
      for (int row = 0; row < kCount; ++row) {
        block[row] = Load(from + (row < rows ? row : rows - 1) * classes, left);
      }
    }
    Transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) columns[first + i] = block[i];
  }
}

template <class Stored, Criterion kCriterion, class Real>
inline void SumTile(const Stored* logits, int64_t classes, int64_t rows,
                    RowSums<Real>* sums) {
  typedef Vector<Real> V;
  V columns[kTileClasses];
  LoadTile<Stored, Real>(logits, classes, rows, columns);

  V largest = Fill<Real>(-kInfinity), second = largest;
  Integers<Real> label = {};
  for (int64_t c = 0; c < classes; ++c) {
    const V z = columns[c];
    if constexpr (kCriterion == Criterion::kMargin) {
      second = Larger(z > largest ? largest : z, second);
    }
    label = z > largest ? Integers<Real>{} + static_cast<int>(c) : label;
    largest = Larger(z, largest);
  }

  const V origin = Origin<Real>(largest);
  V rest = {}, weighted = {};
  for (int64_t c = 0; c < classes; ++c) {
    V d = columns[c] - origin;
    if constexpr (kCriterion == Criterion::kDistance) {
      rest += Larger(Fill<Real>(-1), d) * Real(0);
    } else {
      const V e = Exp<Real>(&d);
      rest = label == static_cast<int>(c) ? rest : rest + e;
      if constexpr (kCriterion == Criterion::kEntropy) weighted += e * d;
    }
  }
  memcpy(sums->largest, &largest, sizeof(V));
  memcpy(sums->second, &second, sizeof(V));
  memcpy(sums->rest, &rest, sizeof(V));
  memcpy(sums->weighted, &weighted, sizeof(V));
  typename Lanes<Real>::Integer labels[Lanes<Real>::kCount];
  memcpy(labels, &label, sizeof(V));
  for (int row = 0; row < Lanes<Real>::kCount; ++row) sums->label[row] = labels[row];
}

// ---- One row after the other --------------------------------------------------------
template <class Stored, class Real>
inline Real Largest(const Stored* row, int64_t begin, int64_t end) {
  constexpr int kCount = Lanes<Real>::kCount;
  const Vector<Real> lowest = Fill<Real>(-kInfinity);
  Vector<Real> largest[4] = {lowest, lowest, lowest, lowest};
  int64_t i = begin;
  for (; i + 4 * kCount <= end; i += 4 * kCount) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      largest[k] = Larger(Load(row + i + k * kCount), largest[k]);
    }
  }
  for (; i < end; i += kCount) {
    largest[0] = Larger(Load(row + i, end - i), largest[0]);
  }
  return Max<Real>(
      Larger(Larger(largest[0], largest[1]), Larger(largest[2], largest[3])));
}

template <class Stored, class Real>
inline int64_t FirstIndex(const Stored* row, int64_t begin, int64_t end, Real value) {
  constexpr int kCount = Lanes<Real>::kCount;
  for (int64_t i = begin; i < end; i += kCount) {
    const int lane = FirstEqual<Real>(Load(row + i, end - i), value);
    if (lane < kCount) return i + lane;
  }
  return begin;
}

template <class Real>
struct Terms {
  Vector<Real> rest = {}, weighted = {};
  void Add(const Terms& other) {
    rest += other.rest;
    weighted += other.weighted;
  }
};

template <Criterion kCriterion, class Real>
inline void AddTerms(Vector<Real> z, Vector<Real> origin, Terms<Real>* terms) {
  Vector<Real> d = z - origin;
  if constexpr (kCriterion == Criterion::kDistance) {
    terms->rest += Larger(Fill<Real>(-1), d) * Real(0);
  } else {
    const Vector<Real> e = Exp<Real>(&d);
    terms->rest += e;
    if constexpr (kCriterion == Criterion::kEntropy) terms->weighted += e * d;
  }
}

// Terms are summed in blocks of 16 first: adding thousands of like terms to one sum
// would round each time in the same direction.
template <class Stored, Criterion kCriterion, class Real>
inline void AddRange(const Stored* row, int64_t begin, int64_t end, Vector<Real> origin,
                     Terms<Real>* terms) {
  constexpr int kCount = Lanes<Real>::kCount;
  int64_t i = begin;
  while (i + 16 * kCount <= end) {
    Terms<Real> block[2];
    for (const int64_t stop = i + 16 * kCount; i < stop; i += 2 * kCount) {
      AddTerms<kCriterion, Real>(Load(row + i), origin, &block[0]);
      AddTerms<kCriterion, Real>(Load(row + i + kCount), origin, &block[1]);
    }
    block[0].Add(block[1]);
    terms->Add(block[0]);
  }
  for (; i < end; i += kCount) {
    AddTerms<kCriterion, Real>(Load(row + i, end - i), origin, terms);
  }
}

// A row's sums so far, relative to the largest logit so far.
struct RunningRow {
  double largest = -kInfinity, second = -kInfinity, rest = 0.0, weighted = 0.0;
  int64_t label = 0;

  // The former largest element becomes one of the rest.
  void Raise(double to) {
    if (largest > -kInfinity) {
      const double d = largest - to;
      const double scale = __builtin_exp(d);
      const double all = 1.0 + rest;
      weighted = scale > 0.0 ? scale * (weighted + d * all) : weighted * 0.0;
      rest = scale * all;
    }
    second = largest;
    largest = to;
  }
};

template <class Stored, Criterion kCriterion, class Real>
inline void AddChunk(const Stored* row, int64_t begin, int64_t end, RunningRow* sums) {
  constexpr int kCount = Lanes<Real>::kCount;
  const Real top = Largest<Stored, Real>(row, begin, end);
  int64_t split = end, after = end;  // the vector that holds the largest element
  Terms<Real> terms;
  const bool raised = top > sums->largest;
  if (raised) {
    sums->Raise(top);
    sums->label = FirstIndex<Stored, Real>(row, begin, end, top);
    split = begin + (sums->label - begin) / kCount * kCount;
    after = split + kCount < end ? split + kCount : end;
  } else if (top > sums->second) {
    sums->second = top;
  }
  const Vector<Real> origin = Origin<Real>(Fill<Real>(Real(sums->largest)));
  AddRange<Stored, kCriterion, Real>(row, begin, split, origin, &terms);
  if (raised) {
    Real lanes[kCount];
    const Vector<Real> all = Load(row + split, end - split);
    memcpy(lanes, &all, sizeof(all));
    lanes[sums->label - split] = Real(-kInfinity);
    AddTerms<kCriterion, Real>(Load(lanes), origin, &terms);
    if constexpr (kCriterion == Criterion::kMargin) {
      Real second = Max<Real>(Load(lanes));
      const Real before = Largest<Stored, Real>(row, begin, split);
      const Real behind = Largest<Stored, Real>(row, after, end);
      second = before > second ? before : second;
      second = behind > second ? behind : second;
      if (second > sums->second) sums->second = second;
    }
    AddRange<Stored, kCriterion, Real>(row, after, end, origin, &terms);
  }
  sums->rest += Sum<Real>(terms.rest);
  sums->weighted += Sum<Real>(terms.weighted);
}

template <class Stored, Criterion kCriterion, class Real>
inline void SumRow(const Stored* row, int64_t classes, int lane, RowSums<Real>* sums) {
  RunningRow running;
  for (int64_t begin = 0; begin < classes; begin += kChunk) {
    const int64_t end = begin + kChunk < classes ? begin + kChunk : classes;
    AddChunk<Stored, kCriterion, Real>(row, begin, end, &running);
  }
  sums->largest[lane] = Real(running.largest);
  sums->second[lane] = Real(running.second);
  // Raise() counts the elements, of which `distance` knows nothing: 0, or NaN.
  if (kCriterion == Criterion::kDistance) running.rest *= 0.0;
  sums->rest[lane] = Real(running.rest);
  sums->weighted[lane] = Real(running.weighted);
  sums->label[lane] = running.label;
}

// ---- From sums to scores ------------------------------------------------------------
template <Criterion kCriterion, class Real>
inline Vector<Real> Score(const RowSums<Real>& sums) {
  typedef Vector<Real> V;
  const V largest = Load(sums.largest), rest = Load(sums.rest);
  V score;
  if constexpr (kCriterion == Criterion::kEntropy) {
    score = Log1p<Real>(rest) - Load(sums.weighted) / (rest + Real(1));
  } else if constexpr (kCriterion == Criterion::kMaxProbability) {
    score = Real(1) / (rest + Real(1));
  } else if constexpr (kCriterion == Criterion::kMargin) {
    const V d = Load(sums.second) - Origin<Real>(largest);
    score = -Expm1<Real>(d) / (rest + Real(1));
  } else {
    score = largest + rest;
  }
  // x - x is 0 for finite x and NaN otherwise.
  return score + (largest - largest);
}

inline Floats Rounded(Floats scores) { return scores; }
inline Lanes<double>::Scores Rounded(Doubles scores) {
  return __builtin_convertvector(scores, Lanes<double>::Scores);
}

template <Criterion kCriterion, class Real>
inline void Finish(const RowSums<Real>& sums, const ExitGate& gate, int64_t first,
                   int rows) {
  typedef Lanes<Real> L;
  constexpr int kCount = L::kCount;
  const Vector<Real> exact = Score<kCriterion, Real>(sums);
  const typename L::Scores scores = Rounded(exact);
  const typename L::Decisions leaves = kCriterion == Criterion::kEntropy
                                           ? scores < gate.threshold
                                           : scores >= gate.threshold;
  // True is -1 in every lane of a comparison, and 1 in memory.
  const typename L::Bytes exits =
      __builtin_convertvector((typename L::Decisions)(-leaves), typename L::Bytes);
  // A copy whose length is known is one instruction.
  const auto store = [&](size_t count) {
    memcpy(gate.scores + first, &scores, count * sizeof(float));
    memcpy(gate.labels + first, sums.label, count * sizeof(int64_t));
    memcpy(gate.exits + first, &exits, count);
  };
  if (rows == kCount) {
    store(kCount);
  } else {
    store(rows);
  }
}

template <class Stored, Criterion kCriterion>
void Run(const ExitGate& gate) {
  typedef typename RealOf<Stored>::Type Real;
  constexpr int kRows = RowSums<Real>::kRows;
  // Scores come last, from four tiles at once: theirs is one long chain of dependent
  // instructions, of which four fit into each other's gaps.
  constexpr int kTiles = 4;
  const Stored* logits = static_cast<const Stored*>(gate.logits);
  RowSums<Real> sums[kTiles] = {};
  for (int64_t first = 0; first < gate.rows; first += kTiles * kRows) {
    const int64_t left = gate.rows - first;
    const int rows = left < kTiles * kRows ? static_cast<int>(left) : kTiles * kRows;
    const Stored* from = logits + first * gate.classes;
    if (gate.classes <= kTileClasses) {
      for (int row = 0; row < rows; row += kRows) {
        SumTile<Stored, kCriterion, Real>(from + row * gate.classes, gate.classes,
                                          rows - row, &sums[row / kRows]);
      }
    } else {
      for (int row = 0; row < rows; ++row) {
        SumRow<Stored, kCriterion, Real>(from + row * gate.classes, gate.classes,
                                         row % kRows, &sums[row / kRows]);
      }
    }
    for (int row = 0; row < rows; row += kRows) {
      const int count = rows - row < kRows ? rows - row : kRows;
      Finish<kCriterion, Real>(sums[row / kRows], gate, first + row, count);
    }
  }
}

template <class Stored>
void RunStored(const ExitGate& gate) {
  switch (gate.criterion) {
    case Criterion::kEntropy:
      return Run<Stored, Criterion::kEntropy>(gate);
    case Criterion::kMaxProbability:
      return Run<Stored, Criterion::kMaxProbability>(gate);
    case Criterion::kMargin:
      return Run<Stored, Criterion::kMargin>(gate);
    case Criterion::kDistance:
      return Run<Stored, Criterion::kDistance>(gate);
  }
}

}  // namespace

namespace KERAS_BRANCHY_ISA {

void ExitGateRows(const ExitGate& gate) {
  const KeepDenormals keep;
  (void)keep;
  switch (gate.storage) {
    case Storage::kFloat32:
      return RunStored<float>(gate);
    case Storage::kFloat16:
      return RunStored<Half>(gate);
    case Storage::kBfloat16:
      return RunStored<Bfloat16>(gate);
    case Storage::kFloat64:
      return RunStored<double>(gate);
  }
}

}  // namespace KERAS_BRANCHY_ISA
}  // namespace keras_branchy
