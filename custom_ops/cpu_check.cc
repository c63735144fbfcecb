// SPDX-License-Identifier: Apache-2.0
// Runs every build of the CPU kernel that this machine supports over the hostile grid,
// against float64, without TensorFlow; then times them. README.md has the command.
//
//   cpu_check [--quick] [--huge] [--time]
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <memory>

#include "check.h"

namespace keras_branchy {
namespace {

// Zeroed memory that ends where a page begins that may not be read: a vector load
// beyond the logits is a fault, whether a sanitizer sees it or not.
class Guarded {
 public:
  explicit Guarded(size_t bytes) {
    const size_t page = sysconf(_SC_PAGESIZE);
    whole_ = (bytes + page - 1) / page * page + page;
    void* base = mmap(nullptr, whole_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    base_ = static_cast<char*>(base);
    if (base == MAP_FAILED || mprotect(base_ + whole_ - page, page, PROT_NONE) != 0) {
      perror("mmap");
      exit(2);
    }
    data_ = base_ + whole_ - page - bytes;
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(base_, whole_); }
  char* data() { return data_; }

 private:
  size_t whole_;
  char *base_, *data_;
};

// Output arrays of exactly the right size, so that a sanitizer sees any overrun.
struct Outputs {
  explicit Outputs(int64_t rows)
      : exits(new bool[rows]), labels(new int64_t[rows]), scores(new float[rows]) {}
  std::unique_ptr<bool[]> exits;
  std::unique_ptr<int64_t[]> labels;
  std::unique_ptr<float[]> scores;
};

ExitGate Gate(const check::Case& made, const void* logits, const Outputs& outputs) {
  return {logits,
          made.storage,
          made.rows,
          made.classes,
          made.threshold,
          made.criterion,
          outputs.exits.get(),
          outputs.labels.get(),
          outputs.scores.get()};
}

bool CheckIsa(Isa isa, bool quick) {
  check::Tally tally;
  for (int64_t rows : {0, 1, 7, 26, 4096}) {
    for (int64_t classes :
         {1, 2, 3, 10, 31, 32, 33, 100, 128, 129, 1000, 1025, 4096, 4097, 50257}) {
      if (rows * classes > (quick ? 60000 : 5000000)) continue;
      for (Storage storage : check::kStorages) {
        for (Criterion criterion : check::kCriteria) {
          const check::Case made = check::MakeCase(storage, criterion, rows, classes);
          Guarded logits(made.logits.size());
          if (rows > 0) memcpy(logits.data(), made.logits.data(), made.logits.size());
          const Outputs outputs(rows);
          ExitGateCpu(Gate(made, logits.data(), outputs), isa);
          check::Compare(made, outputs.exits.get(), outputs.labels.get(),
                         outputs.scores.get(), &tally);
        }
      }
    }
  }
  printf("%-9s %lld rows, %lld wrong, largest error %.2f of the tolerance\n",
         IsaName(isa), static_cast<long long>(tally.rows),
         static_cast<long long>(tally.wrong), tally.worst);
  return tally.wrong == 0;
}

// More than 2^31 logits, in many rows and in one. They are pages never written, which
// take no memory, but for the last one.
bool CheckHuge(Isa isa) {
  bool good = true;
  for (const int64_t rows : {(int64_t{1} << 16) + 1, int64_t{1}}) {
    const int64_t classes = rows > 1 ? int64_t{1} << 15 : (int64_t{1} << 31) + 7;
    Guarded logits(rows * classes * 2);
    check::Store(Storage::kFloat16, 20.0, logits.data(), rows * classes - 1);
    const Outputs outputs(rows);
    ExitGateCpu({logits.data(), Storage::kFloat16, rows, classes, 0.5f,
                 Criterion::kMaxProbability, outputs.exits.get(), outputs.labels.get(),
                 outputs.scores.get()},
                isa);
    const double expected = 1.0 / (1.0 + static_cast<double>(classes - 1) * exp(-20.0));
    good = good && outputs.labels[rows - 1] == classes - 1 &&
           fabs(outputs.scores[rows - 1] / expected - 1.0) < 4e-6;
    good = good && (rows == 1 || (outputs.labels[0] == 0 &&
                                  outputs.scores[0] == 1.0f / (int64_t{1} << 15)));
  }
  printf("%-9s more than 2^31 logits: %s\n", IsaName(isa), good ? "right" : "wrong");
  return good;
}

double Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + now.tv_nsec * 1e-9;
}

double Microseconds(const ExitGate& gate, Isa isa) {
  double best = 1e9;
  const int64_t repeats = 1 + 2000000 / (gate.rows * gate.classes + 1);
  for (int trial = 0; trial < 15; ++trial) {
    const double start = Now();
    for (int64_t i = 0; i < repeats; ++i) ExitGateCpu(gate, isa);
    const double each = (Now() - start) / repeats * 1e6;
    if (each < best) best = each;
  }
  return best;
}

void Time() {
  constexpr int64_t kShapes[][2] = {{1, 10},     {256, 10},    {4096, 10}, {256, 32},
                                    {256, 64},   {256, 100},   {256, 128}, {256, 200},
                                    {256, 1000}, {4096, 1000}, {64, 50257}};
  for (Storage storage : check::kStorages) {
    for (const auto& shape : kShapes) {
      std::vector<char> logits(shape[0] * shape[1] * ElementBytes(storage));
      check::Random random(1);
      for (int64_t i = 0; i < shape[0] * shape[1]; ++i) {
        check::Store(storage, 3.0 * random.Normal(), logits.data(), i);
      }
      const Outputs outputs(shape[0]);
      const ExitGate gate = {logits.data(),
                             storage,
                             shape[0],
                             shape[1],
                             0.5f,
                             Criterion::kEntropy,
                             outputs.exits.get(),
                             outputs.labels.get(),
                             outputs.scores.get()};
      printf("%-9s %5lld x %-6lld", check::kStorageNames[static_cast<int>(storage)],
             static_cast<long long>(shape[0]), static_cast<long long>(shape[1]));
      for (int i = 0; i < kIsas; ++i) {
        const Isa isa = static_cast<Isa>(i);
        if (IsaSupported(isa))
          printf("  %s %.2f us", IsaName(isa), Microseconds(gate, isa));
      }
      printf("\n");
    }
  }
}

}  // namespace
}  // namespace keras_branchy

int main(int count, char** arguments) {
  bool quick = false, huge = false, time = false, good = true;
  for (int i = 1; i < count; ++i) {
    quick = quick || !strcmp(arguments[i], "--quick");
    huge = huge || !strcmp(arguments[i], "--huge");
    time = time || !strcmp(arguments[i], "--time");
  }
  for (int i = 0; i < keras_branchy::kIsas; ++i) {
    const auto isa = static_cast<keras_branchy::Isa>(i);
    if (!keras_branchy::IsaSupported(isa)) continue;
    good = keras_branchy::CheckIsa(isa, quick) && good;
    if (huge) good = keras_branchy::CheckHuge(isa) && good;
  }
  if (time) keras_branchy::Time();
  return good ? 0 : 1;
}
