// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of the exit gate. Three ways to take a row, by its length:
//
//   to 128 classes   8, 16 or 32 lanes of a warp own a row, held in registers
//   to 4096          one warp owns a row and walks along it
//   beyond           one block owns a row, or, where the rows would leave the device
//                    idle, a segment of it; a second kernel merges the segments
//
// Lanes without a class take part with -inf, because a shuffle needs the whole warp.
// Merging is in a fixed order and without atomics: equal calls give equal bits.
#include <cuda_runtime.h>

#include "exit_gate.h"

namespace keras_branchy {
namespace {

constexpr unsigned kWarp = 0xffffffffu;
constexpr int kRegisterClasses = 128;
constexpr int kWarpClasses = 4096;
constexpr int kBlockThreads = 512;
constexpr int64_t kSegment = 8192;  // the least that is worth a block of its own
constexpr int kSmallBlock = 128;    // threads, where a block holds several rows

// ---- Storage ------------------------------------------------------------------------
struct Half {
  unsigned short bits;
};
struct Bfloat16 {
  unsigned short bits;
};

template <class Stored>
struct RealOf {
  typedef float Type;
};
template <>
struct RealOf<double> {
  typedef double Type;
};

__device__ __forceinline__ float ToReal(float x) { return x; }
__device__ __forceinline__ double ToReal(double x) { return x; }
__device__ __forceinline__ float ToReal(Bfloat16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
__device__ __forceinline__ float ToReal(Half x) {
#if defined(__CUDA_ARCH__)
  float real;
  asm("cvt.f32.f16 %0, %1;" : "=f"(real) : "h"(x.bits));
  return real;
#else  // for the emulation in tests/cuda_emulation
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  float real =
      exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24);
  if (exponent == 31) real = fraction ? NAN : INFINITY;
  return x.bits & 0x8000 ? -real : real;
#endif
}

// 16 bytes of logits.
template <class Stored>
struct alignas(16) Pack {
  static constexpr int kCount = 16 / sizeof(Stored);
  Stored values[kCount];
};

template <class Stored>
__device__ __forceinline__ Pack<Stored> LoadPack(const Stored* from) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  Pack<Stored> pack;
  memcpy(&pack, &raw, sizeof(pack));
  return pack;
}

__device__ __forceinline__ float Exp(float x) { return expf(x); }
__device__ __forceinline__ double Exp(double x) { return exp(x); }

// ---- What is known of a part of a row
// ------------------------------------------------
template <class Real>
struct Sums {
  Real largest = -INFINITY;  // m
  Real second = -INFINITY;   // the largest but that one element
  Real rest = 0;             // Σ e^(z-m) without that one element; NaN after a NaN
  Real weighted = 0;         // Σ e^(z-m)·(z-m)
  int64_t label = 0;
};

// Adds e^d, and lets NaN through; 0·-inf counts as 0.
template <class Real>
__device__ __forceinline__ void AddTerm(Real d, Sums<Real>* sums) {
  const Real e = Exp(d);
  sums->rest += e;
  sums->weighted += e > 0 ? e * d : e;
}

// The sums of `part`, whose largest element is not this one's, relative to this one's.
template <class Real>
__device__ __forceinline__ void Absorb(const Sums<Real>& part, Sums<Real>* sums) {
  const Real d = part.largest == sums->largest ? 0 : part.largest - sums->largest;
  const Real all = part.largest > -INFINITY ? 1 + part.rest : part.rest;
  const Real e = Exp(d);
  sums->rest += e > 0 ? e * all : all * 0;
  sums->weighted += e > 0 ? e * (part.weighted + d * all) : all * 0;
  if (part.largest > sums->second) sums->second = part.largest;
}

// Field by field: choosing between two structs would put them in local memory.
template <class Real>
__device__ __forceinline__ Sums<Real> Merge(const Sums<Real>& a, const Sums<Real>& b) {
  const bool second =
      b.largest > a.largest || (b.largest == a.largest && b.label < a.label);
  Sums<Real> merged, part;
  merged.largest = second ? b.largest : a.largest;
  merged.second = second ? b.second : a.second;
  merged.rest = second ? b.rest : a.rest;
  merged.weighted = second ? b.weighted : a.weighted;
  merged.label = second ? b.label : a.label;
  part.largest = second ? a.largest : b.largest;
  part.rest = second ? a.rest : b.rest;
  part.weighted = second ? a.weighted : b.weighted;
  Absorb(part, &merged);
  return merged;
}

template <int kLanes, class Real>
__device__ __forceinline__ Sums<Real> MergeLanes(Sums<Real> sums) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    Sums<Real> other;
    other.largest = __shfl_xor_sync(kWarp, sums.largest, step);
    other.second = __shfl_xor_sync(kWarp, sums.second, step);
    other.rest = __shfl_xor_sync(kWarp, sums.rest, step);
    other.weighted = __shfl_xor_sync(kWarp, sums.weighted, step);
    other.label = __shfl_xor_sync(kWarp, sums.label, step);
    sums = Merge(sums, other);
  }
  return sums;
}

__device__ __forceinline__ float Log1p(float x) { return log1pf(x); }
__device__ __forceinline__ double Log1p(double x) { return log1p(x); }
__device__ __forceinline__ float Expm1(float x) { return expm1f(x); }
__device__ __forceinline__ double Expm1(double x) { return expm1(x); }

template <class Real>
__device__ __forceinline__ Real Score(const Sums<Real>& sums, Criterion criterion) {
  if (isinf(sums.largest) || isnan(sums.rest)) return NAN;
  switch (criterion) {
    case Criterion::kEntropy:
      return Log1p(sums.rest) - sums.weighted / (1 + sums.rest);
    case Criterion::kMaxProbability:
      return 1 / (1 + sums.rest);
    case Criterion::kMargin:
      return -Expm1(sums.second - sums.largest) / (1 + sums.rest);
    default:
      return sums.largest;
  }
}

template <class Real>
__device__ __forceinline__ void Finish(const ExitGate& gate, int64_t row,
                                       const Sums<Real>& sums) {
  const float score = static_cast<float>(Score(sums, gate.criterion));
  gate.exits[row] = gate.criterion == Criterion::kEntropy ? score < gate.threshold
                                                          : score >= gate.threshold;
  gate.labels[row] = sums.largest > -INFINITY ? sums.label : 0;
  gate.scores[row] = score;
}

// ---- A row in the registers of 8, 16 or 32 lanes
// -------------------------------------- Lane l of a row owns the classes l, l +
// kLanes, ... . Two reductions, because the terms need the maximum of the whole row.
template <class Stored, int kLanes, int kItems>
__global__ void __launch_bounds__(kSmallBlock) RowInRegisters(ExitGate gate) {
  typedef typename RealOf<Stored>::Type Real;
  const Stored* logits = static_cast<const Stored*>(gate.logits);
  const int lane = threadIdx.x % kLanes;
  constexpr int kRows = kSmallBlock / kLanes;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRows; first < gate.rows;
       first += static_cast<int64_t>(gridDim.x) * kRows) {
    const int64_t row = first + threadIdx.x / kLanes;
    Real z[kItems];
    Sums<Real> sums;
    sums.label = lane;
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      const int c = k * kLanes + lane;
      z[k] = -INFINITY;
      if (row < gate.rows && c < gate.classes) {
        z[k] = ToReal(logits[row * gate.classes + c]);
      }
      if (z[k] > sums.largest) {
        sums.second = sums.largest;
        sums.largest = z[k];
        sums.label = c;
      } else if (z[k] > sums.second) {
        sums.second = z[k];
      }
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const Real largest = __shfl_xor_sync(kWarp, sums.largest, step);
      const Real second = __shfl_xor_sync(kWarp, sums.second, step);
      const int64_t label = __shfl_xor_sync(kWarp, static_cast<int>(sums.label), step);
      const bool theirs =
          largest > sums.largest || (largest == sums.largest && label < sums.label);
      const Real beaten = theirs ? sums.largest : largest;
      sums.second = theirs ? second : sums.second;
      if (beaten > sums.second) sums.second = beaten;
      if (theirs) {
        sums.largest = largest;
        sums.label = label;
      }
    }
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (k * kLanes + lane == sums.label) continue;
      // -inf - -inf would poison a row that is only broken if all of it is -inf.
      AddTerm(z[k] == -INFINITY ? z[k] : z[k] - sums.largest, &sums);
    }
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
      sums.rest += __shfl_xor_sync(kWarp, sums.rest, step);
      sums.weighted += __shfl_xor_sync(kWarp, sums.weighted, step);
    }
    if (lane == 0 && row < gate.rows) Finish(gate, row, sums);
  }
}

// ---- A row, or a segment of it, walked along
// ----------------------------------------- Takes `count` logits of the classes
// `first`, `first + 1`, ... . Their maximum is looked at first, so that the sums are
// rescaled once, and seldom.
template <int kCount, class Stored, class Real>
__device__ __forceinline__ void AddLogits(const Stored* values, int64_t first,
                                          Sums<Real>* sums) {
  Real z[kCount], top = -INFINITY;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    z[i] = ToReal(values[i]);
    if (z[i] > top) top = z[i];
  }
  int skip = -1;
  if (top > sums->largest) {
    const Sums<Real> before = *sums;
    *sums = Sums<Real>();
    sums->largest = top;
    Absorb(before, sums);
#pragma unroll
    for (int i = kCount - 1; i >= 0; --i) {
      if (z[i] == top) skip = i;
    }
    sums->label = first + skip;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i == skip) continue;
    if (z[i] > sums->second) sums->second = z[i];
    AddTerm(z[i] == -INFINITY ? z[i] : z[i] - sums->largest, sums);
  }
}

// The sums of what one of `kThreads` threads owns of the classes [begin, end) of a row:
// every kThreads-th pack of 16 bytes, and a single logit before the first and after the
// last pack.
template <class Stored, int kThreads>
__device__ __forceinline__ Sums<typename RealOf<Stored>::Type> Walk(const Stored* row,
                                                                    int64_t begin,
                                                                    int64_t end,
                                                                    int thread) {
  constexpr int kCount = Pack<Stored>::kCount;
  constexpr int kAhead = 4;  // packs that are in flight together
  Sums<typename RealOf<Stored>::Type> sums;
  const int64_t past = reinterpret_cast<size_t>(row + begin) % 16 / sizeof(Stored);
  int64_t packed = begin + (past ? kCount - past : 0);
  if (packed > end) packed = end;
  const int64_t packs = (end - packed) / kCount;
  const int64_t tail = packed + packs * kCount;
  if (begin + thread < packed)
    AddLogits<1>(row + begin + thread, begin + thread, &sums);
  int64_t pack = thread;
  for (; pack + (kAhead - 1) * kThreads < packs; pack += kAhead * kThreads) {
    Pack<Stored> ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      ahead[i] = LoadPack(row + packed + (pack + i * kThreads) * kCount);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      AddLogits<kCount>(ahead[i].values, packed + (pack + i * kThreads) * kCount,
                        &sums);
    }
  }
  for (; pack < packs; pack += kThreads) {
    const int64_t c = packed + pack * kCount;
    const Pack<Stored> one = LoadPack(row + c);
    AddLogits<kCount>(one.values, c, &sums);
  }
  if (tail + thread < end) AddLogits<1>(row + tail + thread, tail + thread, &sums);
  return sums;
}

template <class Stored>
__global__ void __launch_bounds__(kSmallBlock) RowPerWarp(ExitGate gate) {
  const Stored* logits = static_cast<const Stored*>(gate.logits);
  constexpr int kRows = kSmallBlock / 32;
  // A warp is of one mind about `row`, so leaving the loop leaves no lane behind.
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / 32;
       row < gate.rows; row += static_cast<int64_t>(gridDim.x) * kRows) {
    const auto sums = MergeLanes<32>(Walk<Stored, 32>(logits + row * gate.classes, 0,
                                                      gate.classes, threadIdx.x % 32));
    if (threadIdx.x % 32 == 0) Finish(gate, row, sums);
  }
}

// Block b takes segment b % segments of row b / segments.
template <class Stored>
__global__ void __launch_bounds__(kBlockThreads)
    RowPerBlock(ExitGate gate, int segments,
                Sums<typename RealOf<Stored>::Type>* parts) {
  typedef typename RealOf<Stored>::Type Real;
  constexpr int kWarps = kBlockThreads / 32;
  __shared__ Real largest[kWarps], second[kWarps], rest[kWarps], weighted[kWarps];
  __shared__ int64_t label[kWarps];
  const Stored* logits = static_cast<const Stored*>(gate.logits);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t length = (gate.classes + segments - 1) / segments;
  for (int64_t part = blockIdx.x; part < gate.rows * segments; part += gridDim.x) {
    const int64_t row = part / segments;
    const int64_t begin = part % segments * length;
    const int64_t end = begin + length < gate.classes ? begin + length : gate.classes;
    Sums<Real> sums = MergeLanes<32>(Walk<Stored, kBlockThreads>(
        logits + row * gate.classes, begin, end, threadIdx.x));
    if (lane == 0) {
      largest[warp] = sums.largest;
      second[warp] = sums.second;
      rest[warp] = sums.rest;
      weighted[warp] = sums.weighted;
      label[warp] = sums.label;
    }
    __syncthreads();  // The warps' sums are there.
    if (warp == 0) {
      sums = Sums<Real>();
      if (lane < kWarps) {
        sums.largest = largest[lane];
        sums.second = second[lane];
        sums.rest = rest[lane];
        sums.weighted = weighted[lane];
        sums.label = label[lane];
      }
      sums = MergeLanes<32>(sums);
      if (lane == 0 && segments == 1) Finish(gate, row, sums);
      if (lane == 0 && segments > 1) parts[part] = sums;
    }
    __syncthreads();  // They are read, and may be overwritten.
  }
}

// One warp merges the segments of a row. Without its say on registers, ptxas takes 48
// for float64 on sm_90, and spills.
template <class Real>
__global__ void __launch_bounds__(kSmallBlock, 8)
    MergeSegments(ExitGate gate, int segments, const Sums<Real>* parts) {
  constexpr int kRows = kSmallBlock / 32;
  const int lane = threadIdx.x % 32;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / 32;
       row < gate.rows; row += static_cast<int64_t>(gridDim.x) * kRows) {
    Sums<Real> sums;
    for (int i = lane; i < segments; i += 32) {
      sums = Merge(sums, parts[row * segments + i]);
    }
    sums = MergeLanes<32>(sums);
    if (lane == 0) Finish(gate, row, sums);
  }
}

// ---- Launching ----------------------------------------------------------------------
// How many blocks share a row: enough to fill the device twice over.
int Segments(const ExitGate& gate) {
  if (gate.rows == 0 || gate.classes <= kWarpClasses) return 1;
  int device = 0, processors = 1;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) !=
          cudaSuccess) {
    return 1;
  }
  const int64_t wanted = 2 * processors / gate.rows;
  const int64_t most = gate.classes / kSegment;
  const int64_t segments = wanted < most ? wanted : most;
  return segments < 1 ? 1 : static_cast<int>(segments);
}

template <class... Parameters, class... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), int64_t blocks, int threads,
                   void* stream, Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  // The kernels loop, so fewer blocks than rows are right, too.
  config.gridDim =
      dim3(static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff));
  config.blockDim = dim3(threads);
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

template <class Stored, int kLanes, int kItems>
cudaError_t LaunchRegisters(const ExitGate& gate, void* stream) {
  constexpr int kRows = kSmallBlock / kLanes;
  return Launch(RowInRegisters<Stored, kLanes, kItems>, (gate.rows + kRows - 1) / kRows,
                kSmallBlock, stream, gate);
}

template <class Stored>
cudaError_t LaunchStored(const ExitGate& gate, void* workspace, void* stream) {
  typedef typename RealOf<Stored>::Type Real;
  constexpr int kRows = kSmallBlock / 32;
  const int64_t warps = (gate.rows + kRows - 1) / kRows;
  if (gate.classes <= 8) return LaunchRegisters<Stored, 8, 1>(gate, stream);
  if (gate.classes <= 16) return LaunchRegisters<Stored, 16, 1>(gate, stream);
  if (gate.classes <= 32) return LaunchRegisters<Stored, 32, 1>(gate, stream);
  if (gate.classes <= 64) return LaunchRegisters<Stored, 32, 2>(gate, stream);
  if (gate.classes <= kRegisterClasses) {
    return LaunchRegisters<Stored, 32, 4>(gate, stream);
  }
  if (gate.classes <= kWarpClasses) {
    return Launch(RowPerWarp<Stored>, warps, kSmallBlock, stream, gate);
  }
  const int segments = Segments(gate);
  auto* parts = static_cast<Sums<Real>*>(workspace);
  const cudaError_t error = Launch(RowPerBlock<Stored>, gate.rows * segments,
                                   kBlockThreads, stream, gate, segments, parts);
  if (error != cudaSuccess || segments == 1) return error;
  return Launch(MergeSegments<Real>, warps, kSmallBlock, stream, gate, segments, parts);
}

}  // namespace

size_t ExitGateCudaWorkspace(const ExitGate& gate) {
  const int segments = Segments(gate);
  return segments == 1 ? 0 : gate.rows * segments * sizeof(Sums<double>);
}

const char* ExitGateCuda(const ExitGate& gate, void* workspace, void* stream) {
  if (gate.rows == 0) return nullptr;
  cudaError_t error = cudaErrorInvalidValue;
  switch (gate.storage) {
    case Storage::kFloat32:
      error = LaunchStored<float>(gate, workspace, stream);
      break;
    case Storage::kFloat16:
      error = LaunchStored<Half>(gate, workspace, stream);
      break;
    case Storage::kBfloat16:
      error = LaunchStored<Bfloat16>(gate, workspace, stream);
      break;
    case Storage::kFloat64:
      error = LaunchStored<double>(gate, workspace, stream);
      break;
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* ExitGateCudaProbe() {
  int driver = 0, runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    cudaGetLastError();
    return "there is no CUDA driver";
  }
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess ||
      driver / 1000 < runtime / 1000) {
    return "the CUDA driver is older than the nvcc that built the op";
  }
  // Looking a kernel up loads it, which fails where no code fits the device.
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, MergeSegments<float>);
  cudaGetLastError();  // A failure must not be reported again by the next call.
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace keras_branchy
