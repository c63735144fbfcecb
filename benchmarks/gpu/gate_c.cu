// SPDX-License-Identifier: Apache-2.0
// The CUDA launcher of the exit gate with a C interface, for ctypes: no TensorFlow.
#include "exit_gate.h"

namespace {

keras_branchy::ExitGate Gate(const void* logits, int storage, int64_t rows,
                             int64_t classes, float threshold, int criterion,
                             void* exits, void* labels, void* scores) {
  return {logits,
          static_cast<keras_branchy::Storage>(storage),
          rows,
          classes,
          threshold,
          static_cast<keras_branchy::Criterion>(criterion),
          static_cast<bool*>(exits),
          static_cast<int64_t*>(labels),
          static_cast<float*>(scores)};
}

}  // namespace

extern "C" {

// Null, or why the kernels cannot run here.
__attribute__((visibility("default"))) const char* gate_problem() {
  return keras_branchy::ExitGateCudaProbe();
}

__attribute__((visibility("default"))) size_t gate_workspace(int storage, int64_t rows,
                                                             int64_t classes) {
  return keras_branchy::ExitGateCudaWorkspace(
      Gate(nullptr, storage, rows, classes, 0, 0, nullptr, nullptr, nullptr));
}

// Null, or what failed.
__attribute__((visibility("default"))) const char* gate_run(
    const void* logits, int storage, int64_t rows, int64_t classes, float threshold,
    int criterion, void* exits, void* labels, void* scores, void* workspace,
    void* stream) {
  return keras_branchy::ExitGateCuda(
      Gate(logits, storage, rows, classes, threshold, criterion, exits, labels, scores),
      workspace, stream);
}

}  // extern "C"
