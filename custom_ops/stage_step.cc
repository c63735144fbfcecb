// SPDX-License-Identifier: Apache-2.0
// The C entry of a stage's step, and the choice among its builds.
#include "stage_step.h"

namespace keras_branchy {

#define KERAS_BRANCHY_BUILD(isa)                                               \
  namespace isa {                                                              \
  int64_t Step(const StageStep& step, const float* logits, const int64_t* who, \
               int64_t start, int64_t rows);                                   \
  }
KERAS_BRANCHY_BUILD(baseline)
#if defined(__x86_64__)
KERAS_BRANCHY_BUILD(avx2)
KERAS_BRANCHY_BUILD(avx512)
#endif
#undef KERAS_BRANCHY_BUILD

int64_t RunStageStep(const StageStep& step, const float* logits, const int64_t* who,
                     int64_t start, int64_t rows, Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return avx512::Step(step, logits, who, start, rows);
  if (isa == Isa::kAvx2) return avx2::Step(step, logits, who, start, rows);
#endif
  (void)isa;
  return baseline::Step(step, logits, who, start, rows);
}

}  // namespace keras_branchy

extern "C" __attribute__((visibility("default"))) int64_t
keras_branchy_stage_step(const keras_branchy::StageStep* step, const float* logits,
                         const int64_t* who, int64_t start, int64_t rows) {
  return keras_branchy::RunStageStep(*step, logits, who, start, rows,
                                     keras_branchy::BestIsa());
}

// The same by a certain build, for tests; -2 where this processor cannot run it.
extern "C" __attribute__((visibility("default"))) int64_t keras_branchy_stage_step_by(
    int64_t isa, const keras_branchy::StageStep* step, const float* logits,
    const int64_t* who, int64_t start, int64_t rows) {
  const auto wanted = static_cast<keras_branchy::Isa>(isa);
  if (!keras_branchy::IsaSupported(wanted)) return -2;
  return keras_branchy::RunStageStep(*step, logits, who, start, rows, wanted);
}

// Of both structs, by which a mirror tells that they are the same.
extern "C" __attribute__((visibility("default"))) int64_t
keras_branchy_stage_step_bytes() {
  return sizeof(keras_branchy::StageStep) + sizeof(keras_branchy::StageAnswers);
}
