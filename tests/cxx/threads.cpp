// Threads that call the engine at once, each on a team of OpenMP's of its own, or all on the pool: for ThreadSanitizer,
// which wants a program without Python. Returns 1 if any result differs from that of one thread.
//
//   clang++ -std=c++17 -O1 -g -fsanitize=thread -fopenmp -I csrc -DDROPFAST_ISA=baseline "-DDROPFAST_ISAS=X(baseline)"
//     tests/cxx/threads.cpp csrc/engine.cpp csrc/thin.cpp csrc/isa.cpp csrc/kernels.cpp
//   TSAN_OPTIONS=ignore_noninstrumented_modules=1 OMP_NUM_THREADS=4 ./a.out
//
// With clang's OpenMP, whose Archer tells the sanitizer of its barriers; of libgomp's it knows nothing. Without -fopenmp
// it is the pool that runs.
#include "threads.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "engine.h"
#include "thin.h"

namespace {

constexpr int64_t kRows = 600, kColumns = 1001;  // large enough for four threads
constexpr int kThreads = 8;

std::vector<float> x(kRows* kColumns, 1.5f);

// Rows begin to end of the mask of a draw, shared over the rows or not.
void apply(float* out, int64_t begin, int64_t end, uint32_t draw, bool shared) {
  const int64_t shape[2] = {end - begin, kColumns}, bytes[2] = {kColumns * 4, 4};
  const int64_t strides[2] = {shared ? 0 : kColumns, 1};
  const dropfast_mask mask = {9, dropfast::threshold(0.1), (uint64_t)(begin * strides[0]), draw, 2, shape, strides};
  dropfast::apply(&mask, DROPFAST_FLOAT32, &x[(size_t)(begin * kColumns)], bytes, out + begin * kColumns, bytes);
}

// What every third column of x is, and how often: compressed without gaps, so that the rows of two threads meet.
std::vector<float> thirds() {
  unsigned char bits[(kColumns + 7) / 8] = {};
  for (int64_t i = 0; i < kColumns; i += 3) bits[i / 8] |= (unsigned char)(1 << i % 8);
  constexpr int64_t kept = (kColumns + 2) / 3;
  std::vector<float> out(kRows * kept), sum = x;
  const dropfast::ThinAxis axes[2] = {{kRows, kColumns * 4, kept * 4, nullptr}, {kColumns, 4, 4, bits}};
  const double factor = 2;
  dropfast::thin(dropfast::kCompress, DROPFAST_FLOAT32, x.data(), out.data(), axes, 2, &factor);
  dropfast::thin(dropfast::kAdd, DROPFAST_FLOAT32, sum.data(), out.data(), axes, 2, &factor);
  return sum;
}

template <class Work>
void at_once(const Work& work) {
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) threads.emplace_back(work, t);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  int wrong = 0;
  std::vector<float> alone[2];
  for (const bool shared : {false, true}) {
    alone[shared].resize(x.size());
    for (int64_t row = 0; row < kRows; ++row) apply(alone[shared].data(), row, row + 1, 3, shared);

    std::vector<std::vector<float>> whole(kThreads, std::vector<float>(x.size()));  // each its own
    at_once([&](int t) { apply(whole[(size_t)t].data(), 0, kRows, 3, shared); });
    for (const std::vector<float>& out : whole) wrong += out != alone[shared];

    std::vector<float> together(x.size());  // each a part
    at_once([&](int t) { apply(together.data(), kRows * t / kThreads, kRows * (t + 1) / kThreads, 3, shared); });
    wrong += together != alone[shared];
  }

  std::vector<float> summed = x;
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t i = 0; i < kColumns; i += 3) summed[(size_t)(row * kColumns + i)] *= 5;
  }
  std::vector<std::vector<float>> sums(kThreads);
  at_once([&](int t) { sums[(size_t)t] = thirds(); });
  for (const std::vector<float>& sum : sums) wrong += sum != summed;

#ifdef _OPENMP
  dropfast::forked = true;  // as in a child: what follows is the pool's
#endif
  std::vector<float> out(x.size());
  for (int call = 0; call < 100; ++call) {  // its threads fall asleep now and then
    if (call % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::fill(out.begin(), out.end(), 0.0f);
    apply(out.data(), 0, kRows, 3, false);
    wrong += out != alone[false];
  }

  // Settings are changed while others compute.
  at_once([&](int t) {
    std::vector<float> mine(x.size());
    t % 2 ? dropfast::limit_threads(1 + t) : (void)dropfast::use_isa(dropfast::current_isa());
    apply(mine.data(), 0, kRows, 3, false);
  });
  std::printf("%d threads at once, %d by %s: %d wrong\n", kThreads, dropfast::max_threads(),
              dropfast::has_openmp() ? "OpenMP and then by the pool" : "the pool", wrong);
  return wrong != 0;
}
