// SPDX-License-Identifier: Apache-2.0
// The instruction sets that CPU kernels are compiled for, and which of them runs here.
#ifndef KERAS_BRANCHY_ISA_H_
#define KERAS_BRANCHY_ISA_H_

namespace keras_branchy {

enum class Isa { kBaseline, kAvx2, kAvx512 };
constexpr int kIsas = 3;

bool IsaSupported(Isa isa);
Isa BestIsa();
const char* IsaName(Isa isa);

}  // namespace keras_branchy

#endif  // KERAS_BRANCHY_ISA_H_
