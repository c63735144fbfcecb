// SPDX-License-Identifier: Apache-2.0
// KerasBranchy>ExitGate: validates, allocates, and hands over to the launchers.
#include <string>

#include "exit_gate.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"
#if defined(KERAS_BRANCHY_CUDA)
#include "xla/stream_executor/stream.h"
#endif

namespace keras_branchy {
namespace {

using tensorflow::DataType;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;

// ---- Validation; the sentences are those of keras_branchy.exit_gate
// ------------------
absl::Status RankError(const std::string& shape) {
  return absl::InvalidArgumentError(
      absl::StrCat("`logits` must have shape [batch, classes]. Received: shape=", shape,
                   ". Flatten or pool the features to one row per sample."));
}

absl::Status ClassesError(const std::string& shape) {
  return absl::InvalidArgumentError(absl::StrCat(
      "`logits` must have at least one class. Received: shape=", shape, "."));
}

absl::Status ThresholdError(const std::string& shape) {
  return absl::InvalidArgumentError(
      absl::StrCat("`threshold` must be a scalar. Received: shape=", shape,
                   ". Pass one float for one exit."));
}

absl::Status ParseCriterion(const std::string& name, Criterion* criterion) {
  if (name == "entropy") {
    *criterion = Criterion::kEntropy;
  } else if (name == "max_probability") {
    *criterion = Criterion::kMaxProbability;
  } else if (name == "margin") {
    *criterion = Criterion::kMargin;
  } else if (name == "distance") {
    *criterion = Criterion::kDistance;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("Unknown criterion '", name,
                     "'. Expected one of: 'entropy', 'max_probability', 'margin', "
                     "'distance'."));
  }
  return absl::OkStatus();
}

absl::Status CheckShapes(const TensorShape& logits, const TensorShape& threshold) {
  if (logits.dims() != 2) return RankError(logits.DebugString());
  if (logits.dim_size(1) == 0) return ClassesError(logits.DebugString());
  if (threshold.dims() != 0) return ThresholdError(threshold.DebugString());
  return absl::OkStatus();
}

absl::Status InferShapes(InferenceContext* c) {
  std::string name;
  Criterion criterion;
  TF_RETURN_IF_ERROR(c->GetAttr("criterion", &name));
  TF_RETURN_IF_ERROR(ParseCriterion(name, &criterion));
  const auto logits = c->input(0), threshold = c->input(1);
  if (c->RankKnown(threshold) && c->Rank(threshold) != 0) {
    return ThresholdError(c->DebugString(threshold));
  }
  auto rows = c->UnknownDim();
  if (c->RankKnown(logits)) {
    if (c->Rank(logits) != 2) return RankError(c->DebugString(logits));
    const auto classes = c->Dim(logits, 1);
    if (c->ValueKnown(classes) && c->Value(classes) == 0) {
      return ClassesError(c->DebugString(logits));
    }
    rows = c->Dim(logits, 0);
  }
  for (int i = 0; i < 3; ++i) c->set_output(i, c->Vector(rows));
  return absl::OkStatus();
}

Storage StorageOf(DataType type) {
  switch (type) {
    case tensorflow::DT_HALF:
      return Storage::kFloat16;
    case tensorflow::DT_BFLOAT16:
      return Storage::kBfloat16;
    case tensorflow::DT_DOUBLE:
      return Storage::kFloat64;
    default:  // The op's definition admits no fifth type.
      return Storage::kFloat32;
  }
}

// ---- Kernels ------------------------------------------------------------------------
class ExitGateKernel : public OpKernel {
 public:
  explicit ExitGateKernel(OpKernelConstruction* context) : OpKernel(context) {
    std::string name;
    OP_REQUIRES_OK(context, context->GetAttr("criterion", &name));
    OP_REQUIRES_OK(context, ParseCriterion(name, &criterion_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& logits = context->input(0);
    const Tensor& threshold = context->input(1);
    OP_REQUIRES_OK(context, CheckShapes(logits.shape(), threshold.shape()));
    const int64_t rows = logits.dim_size(0);
    Tensor *exits, *labels, *scores;
    const TensorShape shape({rows});
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &exits));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &labels));
    OP_REQUIRES_OK(context, context->allocate_output(2, shape, &scores));
    if (rows == 0) return;
    ExitGate gate;
    gate.logits = logits.data();
    gate.storage = StorageOf(logits.dtype());
    gate.rows = rows;
    gate.classes = logits.dim_size(1);
    gate.threshold = *static_cast<const float*>(threshold.data());
    gate.criterion = criterion_;
    gate.exits = static_cast<bool*>(exits->data());
    gate.labels = static_cast<int64_t*>(labels->data());
    gate.scores = static_cast<float*>(scores->data());
    Launch(context, gate);
  }

 protected:
  virtual void Launch(OpKernelContext* context, const ExitGate& gate) = 0;

 private:
  Criterion criterion_ = Criterion::kEntropy;
};

class ExitGateCpuKernel : public ExitGateKernel {
 public:
  using ExitGateKernel::ExitGateKernel;

 protected:
  void Launch(OpKernelContext* context, const ExitGate& gate) override {
    const Isa isa = BestIsa();
    const int64_t cycles = CyclesPerRow(gate.classes, gate.storage, isa);
    // The pool would come to the same answer, and take 0.2 us over it.
    if (cycles * gate.rows < kWorthSharing) return ExitGateCpu(gate, isa);
    const int64_t unit = RowsPerShard(gate.classes);
    const int64_t units = (gate.rows + unit - 1) / unit;
    const auto run = [&gate, unit, isa](int64_t begin, int64_t end) {
      const int64_t last = end * unit < gate.rows ? end * unit : gate.rows;
      ExitGateCpu(Rows(gate, begin * unit, last), isa);
    };
    const auto& workers = *context->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(workers.num_threads, workers.workers, units, unit * cycles, run);
  }

 private:
  static constexpr int64_t kWorthSharing = 100000;  // cycles
};

#if defined(KERAS_BRANCHY_CUDA)
class ExitGateCudaKernel : public ExitGateKernel {
 public:
  explicit ExitGateCudaKernel(OpKernelConstruction* context)
      : ExitGateKernel(context) {}

 protected:
  void Launch(OpKernelContext* context, const ExitGate& gate) override {
    Tensor workspace;
    const auto bytes = static_cast<int64_t>(ExitGateCudaWorkspace(gate));
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_UINT8,
                                                   TensorShape({bytes}), &workspace));
    void* stream =
        context->op_device_context()->stream()->platform_specific_handle().stream;
    const char* error = ExitGateCuda(gate, workspace.flat<uint8_t>().data(), stream);
    OP_REQUIRES(context, error == nullptr,
                absl::InternalError(absl::StrCat("ExitGate on CUDA: ", error)));
  }
};
#endif

}  // namespace

REGISTER_OP("KerasBranchy>ExitGate")
    .Input("logits: T")
    .Input("threshold: float")
    .Output("exit: bool")
    .Output("label: int64")
    .Output("score: float")
    .Attr("T: {float, half, bfloat16, double}")
    .Attr("criterion: string = 'entropy'")
    .SetShapeFn(InferShapes)
    .Doc(R"doc(
Decides which samples leave at an exit, in one pass over its logits.

A row with a NaN, a +inf or nothing but -inf has the score NaN and stays. There is no
gradient.

logits: [batch, classes], classes >= 1.
threshold: A scalar, in the unit of the criterion.
exit: [batch]. score < threshold for `entropy`, score >= threshold for the others.
label: [batch]. The class of the largest logit, the lowest one on ties.
score: [batch]. Entropy in nats, probability of the label, its lead over the second
  class, or the largest logit.
criterion: `entropy`, `max_probability`, `margin` or `distance`.
)doc");

REGISTER_KERNEL_BUILDER(Name("KerasBranchy>ExitGate").Device(tensorflow::DEVICE_CPU),
                        ExitGateCpuKernel);
#if defined(KERAS_BRANCHY_CUDA)
REGISTER_KERNEL_BUILDER(Name("KerasBranchy>ExitGate")
                            .Device(tensorflow::DEVICE_GPU)
                            .HostMemory("threshold"),
                        ExitGateCudaKernel);
#endif

}  // namespace keras_branchy

// ---- For native.py, through ctypes --------------------------------------------------
extern "C" __attribute__((visibility("default"))) const char*
keras_branchy_instruction_set() {
  return keras_branchy::IsaName(keras_branchy::BestIsa());
}

// Null if the CUDA kernel can run, or the reason why it cannot.
extern "C" __attribute__((visibility("default"))) const char*
keras_branchy_cuda_problem() {
#if defined(KERAS_BRANCHY_CUDA)
  return keras_branchy::ExitGateCudaProbe();
#else
  return "the op was built without nvcc";
#endif
}
