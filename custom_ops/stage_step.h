// SPDX-License-Identifier: Apache-2.0
// One exit of staged inference on the CPU, in one call: the scores, labels and
// probabilities of a chunk of samples, who leaves, their answers in place, and the
// others moved together for the next stage. No TensorFlow type appears here.
#ifndef KERAS_BRANCHY_STAGE_STEP_H_
#define KERAS_BRANCHY_STAGE_STEP_H_

#include <stdint.h>

#include "isa.h"

namespace keras_branchy {

// More than so many classes fit no kernel's scratch memory.
constexpr int64_t kMostStepClasses = 4096;

// What samples are told where they leave; row i is sample `first` + i. It and
// `StageStep` are mirrored by keras_branchy/native_step.py; every member is eight bytes
// wide, so that there is no padding.
struct StageAnswers {
  int64_t first;
  int64_t* labels;
  float* probabilities;  // [samples, classes]
  int64_t* exits;
  float* scores;
  int64_t* previous;  // the last label, -1 for none; null without patience
  int64_t* agreed;    // how many exits in a row gave it
};

struct StageStep {
  // The exit.
  int64_t classes;    // from 1 to kMostStepClasses
  int64_t criterion;  // index into entropy, max_probability, margin, distance, learned
  int64_t stage;      // what its samples get in `exits`
  int64_t is_last;    // everybody leaves
  int64_t patience;   // exits that must agree; 0 for none
  double threshold;   // a float32
  double coefficients[4];  // of `learned`

  const StageAnswers* answers;  // of all exits of a walk

  // Those who stay go behind `end` rows that wait already.
  int64_t* waiting;
  int64_t end;
  int64_t tensors;          // how many each takes along
  const char* const* from;  // [rows of the chunk, bytes] each
  char* const* to;
  const int64_t* bytes;  // of one row
};

// Takes `rows` samples through an exit.
//
// `logits` is [rows, classes], `who` their numbers, or null where they are `start` and
// those after it. Returns how many stay, or -1 where a logit is not finite; then
// nothing is written.
int64_t RunStageStep(const StageStep& step, const float* logits, const int64_t* who,
                     int64_t start, int64_t rows, Isa isa);

}  // namespace keras_branchy

#endif  // KERAS_BRANCHY_STAGE_STEP_H_
