// SPDX-License-Identifier: Apache-2.0
// As much of CUDA as exit_gate_cuda.cu and cuda_check.cu use, on the CPU: the kernels'
// logic can be tested where there is no GPU. Each thread of a block is a coroutine;
// shuffles and barriers wait for the others, and a warp that waits for a thread that
// has left is reported, as are a launch's bad configuration and a misaligned vector
// load. It says nothing about speed or memory ordering.
#ifndef KERAS_BRANCHY_TESTS_CUDA_RUNTIME_H_
#define KERAS_BRANCHY_TESTS_CUDA_RUNTIME_H_

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned count) : x(count) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9
};
typedef void* cudaStream_t;

namespace emulation {

struct Thread {
  ucontext_t context;  // to enter it; later switches need no system call
  jmp_buf resume;
  bool entered = false;
  std::vector<char> stack = std::vector<char>(96 << 10);
  bool done = false;
  char barrier = 0;  // 'w'arp, 'b'lock or none
  uint64_t value = 0;
};

struct Block {
  std::vector<Thread> threads;
  ucontext_t scheduler;
  jmp_buf back;
  size_t current = 0;
  std::function<void()> body;
  int live = 0;
};

inline Block block;

[[noreturn]] inline void Fail(const char* what) {
  fprintf(stderr, "emulated CUDA: %s\n", what);
  abort();
}

inline void Enter() {
  block.body();
  block.threads[block.current].done = true;
  _longjmp(block.back, 1);
}

// Hands over until everyone who must be at this barrier is.
inline void Wait(char barrier) {
  Thread& self = block.threads[block.current];
  self.barrier = barrier;
  if (_setjmp(self.resume) == 0) _longjmp(block.back, 1);
}

inline void Resume(Thread* thread) {
  if (_setjmp(block.back) != 0) return;
  if (thread->entered) _longjmp(thread->resume, 1);
  thread->entered = true;
  swapcontext(&block.scheduler, &thread->context);
}

// Lets the threads [first, last) go on if all of them wait at `barrier`.
inline bool Release(size_t first, size_t last, char barrier) {
  int waiting = 0;
  bool left = false;
  for (size_t i = first; i < last; ++i) {
    waiting += block.threads[i].barrier == barrier;
    left = left || block.threads[i].done;
  }
  if (waiting > 0 && left) Fail("a barrier waits for a thread that has returned");
  if (waiting < static_cast<int>(last - first)) return false;
  for (size_t i = first; i < last; ++i) block.threads[i].barrier = 0;
  return true;
}

}  // namespace emulation

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

inline void RunBlock(size_t count) {
  block.threads.resize(count);
  for (Thread& thread : block.threads) {
    thread.done = thread.entered = false;
    thread.barrier = 0;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = &block.scheduler;
    makecontext(&thread.context, Enter, 0);
  }
  for (bool progress = true; progress;) {
    progress = false;
    for (size_t i = 0; i < count; ++i) {
      Thread& thread = block.threads[i];
      if (thread.done || thread.barrier) continue;
      block.current = i;
      threadIdx.x = static_cast<unsigned>(i);
      Resume(&thread);
      progress = true;
    }
    for (size_t i = 0; i < count; i += 32) progress |= Release(i, i + 32, 'w');
    progress |= Release(0, count, 'b');
  }
  for (const Thread& thread : block.threads) {
    if (!thread.done) Fail("the threads of a block wait for each other");
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::Wait('b'); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  if (mask != 0xffffffffu) emulation::Fail("a shuffle without the whole warp");
  const size_t self = emulation::block.current;
  memcpy(&emulation::block.threads[self].value, &value, sizeof(T));
  emulation::Wait('w');
  T other;
  memcpy(&other, &emulation::block.threads[self ^ lanes].value, sizeof(T));
  emulation::Wait('w');  // Everyone has read before anyone writes again.
  return other;
}

inline float __uint_as_float(unsigned bits) {
  float real;
  memcpy(&real, &bits, sizeof(real));
  return real;
}

// ---- The runtime --------------------------------------------------------------------
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};
struct cudaFuncAttributes {};
struct cudaDeviceProp {
  char name[64] = "emulated on the CPU";
  int major = 0, minor = 0, multiProcessorCount = 0;
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config,
                               void (*kernel)(Parameters...), Arguments... arguments) {
  const unsigned threads = config->blockDim.x;
  if (threads == 0 || threads > 1024 || threads % 32 || config->gridDim.x == 0) {
    return cudaErrorInvalidConfiguration;
  }
  // Far fewer blocks than on a GPU: the kernels' loops over blocks are tested, too.
  const unsigned most = 97;
  gridDim = dim3(config->gridDim.x < most ? config->gridDim.x : most);
  blockDim = config->blockDim;
  emulation::block.body = [=] { kernel(arguments...); };
  for (unsigned b = 0; b < gridDim.x; ++b) {
    blockIdx.x = b;
    emulation::RunBlock(threads);
  }
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid value or configuration";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = cudaDeviceProp();
  properties->multiProcessorCount = 132;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = 132, cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  return *version = 13000, cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) {
  return *version = 13000, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}

// Memory is poisoned, so that what a kernel leaves unwritten is seen.
template <class T>
cudaError_t cudaMalloc(T** pointer, size_t bytes) {
  *pointer = static_cast<T*>(aligned_alloc(256, (bytes + 511) / 256 * 256));
  memset(static_cast<void*>(*pointer), 0xcd, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* pointer) { return free(pointer), cudaSuccess; }
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes,
                              cudaMemcpyKind) {
  if (bytes > 0) memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes,
                                   cudaMemcpyKind kind, cudaStream_t = nullptr) {
  return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  return memset(to, value, bytes), cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

struct timespec_event {
  timespec at;
};
typedef timespec_event* cudaEvent_t;
inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return *event = new timespec_event, cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return delete event, cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t = nullptr) {
  return clock_gettime(CLOCK_MONOTONIC, &event->at), cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start,
                                        cudaEvent_t stop) {
  *milliseconds = (stop->at.tv_sec - start->at.tv_sec) * 1e3f +
                  (stop->at.tv_nsec - start->at.tv_nsec) * 1e-6f;
  return cudaSuccess;
}

#endif  // KERAS_BRANCHY_TESTS_CUDA_RUNTIME_H_
