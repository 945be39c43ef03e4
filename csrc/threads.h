// Threads, and what of a process they must get along with: forks, other libraries' settings, a foreign floating-point
// mode.
#pragma once

#include <fenv.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <thread>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace dropfast {

// ---- fork

// Whether this process was forked and has not executed another program since: Linux' PF_FORKNOEXEC (linux/sched.h), a
// bit of field 9 of /proc/self/stat.
inline bool is_fork() {
  char stat[512];
  FILE* file = fopen("/proc/self/stat", "r");
  if (!file) return false;
  stat[fread(stat, 1, sizeof stat - 1, file)] = 0;
  fclose(file);
  const char* behind_name = strrchr(stat, ')');  // the name of the program may hold anything
  unsigned flags = 0;
  return behind_name && sscanf(behind_name + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && (flags & 0x40) != 0;
}

// libgomp's threads do not survive a fork, and its next parallel region in the child waits for them for ever: also
// where another library started them, and dropfast is loaded only in the child. They belong to the thread that started
// them, though: a fresh thread gets a fresh team.
inline std::atomic<bool> forked{is_fork()};
[[maybe_unused]] inline const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// ---- floating point

// The default mode (nearest even, subnormals kept) while this lives, and after that the caller's, with its status
// flags: flush-to-zero, for instance, holds for the thread that set it, so the bits would depend on the number of
// threads.
class DefaultFloatingPoint {
 public:
#if defined(__SSE2__)
  DefaultFloatingPoint() : callers_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatingPoint() { _mm_setcsr(callers_); }

 private:
  const unsigned callers_;
#else
  DefaultFloatingPoint() {
    fegetenv(&callers_);
    fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { fesetenv(&callers_); }

 private:
  fenv_t callers_;
#endif
};

// ---- work

// Calls work(t) for every t < threads, on as many threads.
template <class Work>
void run_parallel(int threads, const Work& work) {
  const auto one = [&](int t) {
    const DefaultFloatingPoint mode;
    work(t);
  };
#ifdef _OPENMP
  const auto region = [&] {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; ++t) one(t);
  };
  if (threads > 1) {
    if (!forked) return region();
    return std::thread(region).join();
  }
#endif
  for (int t = 0; t < threads; ++t) one(t);
}

}  // namespace dropfast
