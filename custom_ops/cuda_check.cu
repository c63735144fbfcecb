// SPDX-License-Identifier: Apache-2.0
// Runs the CUDA kernels over the hostile grid, against float64, without TensorFlow;
// then times them against a device-to-device copy and an empty launch. One command:
//
//   nvcc -std=c++17 -O3 -Xptxas -v -arch=native -o cuda_check
//       custom_ops/cuda_check.cu custom_ops/exit_gate_cuda.cu
//   ./cuda_check [--quick] [--json FILE]
#include <cuda_runtime.h>
#include <stdlib.h>

#include <algorithm>
#include <memory>
#include <string>

#include "check.h"

namespace keras_branchy {
namespace {

void Require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  exit(2);
}

void* Allocate(size_t bytes) {
  void* memory = nullptr;
  Require(cudaMalloc(&memory, bytes ? bytes : 16), "cudaMalloc");
  return memory;
}

// A call's device memory. `offset` elements before the logits test their alignment.
class OnDevice {
 public:
  OnDevice(Storage storage, int64_t rows, int64_t classes, int64_t offset)
      : skip_(offset * ElementBytes(storage)) {
    logits_ =
        static_cast<char*>(Allocate(rows * classes * ElementBytes(storage) + skip_));
    gate_ = {logits_ + skip_,
             storage,
             rows,
             classes,
             0.5f,
             Criterion::kEntropy,
             static_cast<bool*>(Allocate(rows)),
             static_cast<int64_t*>(Allocate(rows * 8)),
             static_cast<float*>(Allocate(rows * 4))};
    workspace_ = Allocate(ExitGateCudaWorkspace(gate_));
  }
  OnDevice(const OnDevice&) = delete;
  ~OnDevice() {
    cudaFree(logits_);
    cudaFree(gate_.exits);
    cudaFree(gate_.labels);
    cudaFree(gate_.scores);
    cudaFree(workspace_);
  }

  ExitGate& gate() { return gate_; }
  void* logits() { return logits_ + skip_; }

  void Run() {
    const char* error = ExitGateCuda(gate_, workspace_, nullptr);
    if (error == nullptr) return;
    fprintf(stderr, "ExitGateCuda: %s\n", error);
    exit(2);
  }

 private:
  int64_t skip_;
  char* logits_;
  void* workspace_;
  ExitGate gate_;
};

// What came back to the host.
struct Results {
  std::vector<char> exits, labels, scores;
  bool operator==(const Results& other) const {
    return exits == other.exits && labels == other.labels && scores == other.scores;
  }
};

Results Fetch(const ExitGate& gate) {
  Results results = {std::vector<char>(gate.rows), std::vector<char>(gate.rows * 8),
                     std::vector<char>(gate.rows * 4)};
  Require(cudaDeviceSynchronize(), "kernel");
  Require(
      cudaMemcpy(results.exits.data(), gate.exits, gate.rows, cudaMemcpyDeviceToHost),
      "exits");
  Require(cudaMemcpy(results.labels.data(), gate.labels, gate.rows * 8,
                     cudaMemcpyDeviceToHost),
          "labels");
  Require(cudaMemcpy(results.scores.data(), gate.scores, gate.rows * 4,
                     cudaMemcpyDeviceToHost),
          "scores");
  return results;
}

void CheckCase(const check::Case& made, int64_t offset, check::Tally* tally) {
  OnDevice device(made.storage, made.rows, made.classes, offset);
  device.gate().criterion = made.criterion;
  device.gate().threshold = made.threshold;
  Require(cudaMemcpy(device.logits(), made.logits.data(), made.logits.size(),
                     cudaMemcpyHostToDevice),
          "logits");
  device.Run();
  const Results first = Fetch(device.gate());
  check::Compare(made, reinterpret_cast<const bool*>(first.exits.data()),
                 reinterpret_cast<const int64_t*>(first.labels.data()),
                 reinterpret_cast<const float*>(first.scores.data()), tally);
  device.Run();
  if (!(Fetch(device.gate()) == first)) {
    ++tally->wrong;
    printf("wrong: [%lld, %lld] gives other bits the second time\n",
           static_cast<long long>(made.rows), static_cast<long long>(made.classes));
  }
}

bool Check(bool quick) {
  check::Tally tally;
  for (int64_t rows : {0, 1, 7, quick ? 101 : 4096}) {
    for (int64_t classes :
         {1,  2,   3,   8,   9,    10,   16,   17,   31,    32,    33,    64,
          65, 100, 128, 129, 1000, 1025, 4096, 4097, 16384, 50257, 262144}) {
      if (rows * classes > (quick ? 120000 : 6000000)) continue;
      for (Storage storage : check::kStorages) {
        for (Criterion criterion : check::kCriteria) {
          const auto made = check::MakeCase(storage, criterion, rows, classes);
          CheckCase(made, 0, &tally);
          if (rows == 7) CheckCase(made, 3, &tally);  // packs start elsewhere
        }
      }
    }
  }
  printf("%lld rows, %lld wrong, largest error %.2f of the tolerance\n",
         static_cast<long long>(tally.rows), static_cast<long long>(tally.wrong),
         tally.worst);
  return tally.wrong == 0;
}

// ---- Timing -------------------------------------------------------------------------
template <class Work>
double Microseconds(int repeats, const Work& work) {
  cudaEvent_t start, stop;
  Require(cudaEventCreate(&start), "event");
  Require(cudaEventCreate(&stop), "event");
  std::vector<double> trials;
  for (int trial = 0; trial < 21; ++trial) {
    Require(cudaEventRecord(start), "record");
    for (int i = 0; i < repeats; ++i) work();
    Require(cudaEventRecord(stop), "record");
    Require(cudaEventSynchronize(stop), "synchronize");
    float milliseconds = 0;
    Require(cudaEventElapsedTime(&milliseconds, start, stop), "elapsed");
    if (trial > 0) trials.push_back(milliseconds * 1e3 / repeats);
  }
  Require(cudaEventDestroy(start), "event");
  Require(cudaEventDestroy(stop), "event");
  std::sort(trials.begin(), trials.end());
  return trials[trials.size() / 2];
}

struct Shape {
  int64_t rows, classes;
};

// One line and one JSON row: the kernel, a copy of as many bytes, and their rates. The
// calls take turns among buffers of 256 MB in all, so that the cache holds none of
// them.
std::string TimeShape(Storage storage, Shape shape) {
  const int64_t bytes = shape.rows * shape.classes * ElementBytes(storage);
  const int copies =
      static_cast<int>(std::min<int64_t>(64, 1 + (int64_t{256} << 20) / (bytes + 1)));
  std::vector<std::unique_ptr<OnDevice>> devices;
  std::vector<char> logits(bytes);
  check::Random random(1);
  for (int64_t i = 0; i < shape.rows * shape.classes; ++i) {
    check::Store(storage, 3.0 * random.Normal(), logits.data(), i);
  }
  for (int i = 0; i < copies; ++i) {
    devices.emplace_back(new OnDevice(storage, shape.rows, shape.classes, 0));
    Require(cudaMemcpy(devices.back()->logits(), logits.data(), bytes,
                       cudaMemcpyHostToDevice),
            "logits");
  }
  void* target = Allocate(bytes);
  int turn = 0;
  const int repeats = bytes < (1 << 20) ? 200 : 20;
  const double kernel = Microseconds(repeats, [&] { devices[turn++ % copies]->Run(); });
  const double copy = Microseconds(repeats, [&] {
    Require(cudaMemcpyAsync(target, devices[turn++ % copies]->logits(), bytes,
                            cudaMemcpyDeviceToDevice),
            "copy");
  });
  Require(cudaFree(target), "cudaFree");
  const double moved = bytes + 13.0 * shape.rows;  // and exits, labels, scores
  char line[512];
  snprintf(
      line, sizeof(line),
      "{\"batch\": %lld, \"classes\": %lld, \"dtype\": \"%s\", \"kernel_us\": %.2f, "
      "\"copy_us\": %.2f, \"kernel_gb_s\": %.1f, \"copy_gb_s\": %.1f}",
      static_cast<long long>(shape.rows), static_cast<long long>(shape.classes),
      check::kStorageNames[static_cast<int>(storage)], kernel, copy,
      moved / kernel * 1e-3, 2.0 * bytes / copy * 1e-3);
  printf("%s\n", line);
  return line;
}

// A call of one row and one class: what launching costs.
double LaunchMicroseconds() {
  OnDevice device(Storage::kFloat32, 1, 1, 0);
  return Microseconds(200, [&] { device.Run(); });
}

void Time(const cudaDeviceProp& properties, const char* json) {
  constexpr Shape kShapes[] = {{1, 10},     {32, 10},      {256, 10},     {4096, 10},
                               {256, 1000}, {4096, 1000},  {65536, 1000}, {64, 50257},
                               {1, 50257},  {1024, 50257}, {256, 262144}, {1, 262144}};
  const double launch = LaunchMicroseconds();
  printf("launch of one row of one class: %.2f us\n", launch);
  std::string rows;
  for (Storage storage : {Storage::kFloat32, Storage::kBfloat16}) {
    for (const Shape& shape : kShapes) {
      rows += (rows.empty() ? "" : ",\n    ") + TimeShape(storage, shape);
    }
  }
  if (json == nullptr) return;
  FILE* file = fopen(json, "w");
  if (file == nullptr) {
    perror(json);
    exit(2);
  }
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  fprintf(file,
          "{\"hardware\": \"%s\", \"versions\": {\"driver\": %d, \"runtime\": %d},\n"
          "  \"launch_us\": %.2f,\n  \"rows\": [\n    %s\n  ]}\n",
          properties.name, driver, runtime, launch, rows.c_str());
  fclose(file);
}

}  // namespace
}  // namespace keras_branchy

int main(int count, char** arguments) {
  bool quick = false;
  const char* json = nullptr;
  for (int i = 1; i < count; ++i) {
    quick = quick || !strcmp(arguments[i], "--quick");
    if (!strcmp(arguments[i], "--json") && i + 1 < count) json = arguments[++i];
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    printf("There is no CUDA device here: built, but nothing was run.\n");
    return 0;
  }
  if (const char* problem = keras_branchy::ExitGateCudaProbe()) {
    printf("The kernels cannot run here: %s.\n", problem);
    return 1;
  }
  cudaDeviceProp properties;
  keras_branchy::Require(cudaGetDeviceProperties(&properties, 0), "device");
  printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
  if (!keras_branchy::Check(quick)) return 1;
  if (!quick) keras_branchy::Time(properties, json);
  return 0;
}
