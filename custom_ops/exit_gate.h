// SPDX-License-Identifier: Apache-2.0
// The launchers of the exit gate: what the CPU and the CUDA kernel implement.
// README.md is their contract. No TensorFlow type appears here.
#ifndef KERAS_BRANCHY_EXIT_GATE_H_
#define KERAS_BRANCHY_EXIT_GATE_H_

#include <stddef.h>
#include <stdint.h>

#include "isa.h"

namespace keras_branchy {

enum class Criterion { kEntropy, kMaxProbability, kMargin, kDistance };

// How the logits lie in memory. The two 16-bit types are computed in float.
enum class Storage { kFloat32, kFloat16, kBfloat16, kFloat64 };

// One call of the gate. Pointers are to host or device memory, as the launcher is.
struct ExitGate {
  const void* logits;  // [rows, classes], row-major, classes >= 1
  Storage storage;
  int64_t rows;
  int64_t classes;
  float threshold;  // read by the CPU; CUDA passes it to the kernel by value
  Criterion criterion;
  bool* exits;      // [rows]
  int64_t* labels;  // [rows]
  float* scores;    // [rows]
};

inline int64_t ElementBytes(Storage storage) {
  switch (storage) {
    case Storage::kFloat64:
      return 8;
    case Storage::kFloat32:
      return 4;
    default:
      return 2;
  }
}

// The part of a call that covers rows [begin, end).
inline ExitGate Rows(ExitGate gate, int64_t begin, int64_t end) {
  gate.logits = static_cast<const char*>(gate.logits) +
                begin * gate.classes * ElementBytes(gate.storage);
  gate.rows = end - begin;
  gate.exits += begin;
  gate.labels += begin;
  gate.scores += begin;
  return gate;
}

// Runs on the calling thread. A row's results do not depend on the rows around it.
void ExitGateCpu(const ExitGate& gate, Isa isa);

// Rows that one call should hold at least, and what a row costs, in CPU cycles: for
// the thread pool that splits a call.
int64_t RowsPerShard(int64_t classes);
int64_t CyclesPerRow(int64_t classes, Storage storage, Isa isa);

// Enqueues on `stream` (a cudaStream_t) and returns nullptr, or says why it could not.
// `workspace` is device memory of ExitGateCudaWorkspace bytes, and may be null for 0.
const char* ExitGateCuda(const ExitGate& gate, void* workspace, void* stream);
size_t ExitGateCudaWorkspace(const ExitGate& gate);

// Nullptr if this process's driver can run the kernels on the current device, or why
// it cannot.
const char* ExitGateCudaProbe();

}  // namespace keras_branchy

#endif  // KERAS_BRANCHY_EXIT_GATE_H_
