// SPDX-License-Identifier: Apache-2.0
// Chooses among the builds of the CPU kernel at run time.
#include "exit_gate.h"

namespace keras_branchy {

namespace baseline {
void ExitGateRows(const ExitGate& gate);
}
#if defined(__x86_64__)
namespace avx2 {
void ExitGateRows(const ExitGate& gate);
}
namespace avx512 {
void ExitGateRows(const ExitGate& gate);
}
#endif

void ExitGateCpu(const ExitGate& gate, Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512::ExitGateRows(gate);
  if (isa == Isa::kAvx2) return avx2::ExitGateRows(gate);
#endif
  (void)isa;
  baseline::ExitGateRows(gate);
}

int64_t RowsPerShard(int64_t classes) { return classes <= 256 ? 64 : 1; }

int64_t CyclesPerRow(int64_t classes, Storage storage, Isa isa) {
  // Measured with cpu_check --time: about a cycle a logit with AVX-512, and 12 a row.
  const double per_logit = isa == Isa::kAvx512 ? 1.0 : isa == Isa::kAvx2 ? 1.3 : 4.0;
  const double width = storage == Storage::kFloat64 ? 3.5 : 1.0;
  return static_cast<int64_t>(per_logit * width * static_cast<double>(classes)) + 12;
}

}  // namespace keras_branchy
