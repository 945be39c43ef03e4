// Threads, and what of a process they must get along with: forks, other libraries' settings, a foreign floating-point
// mode.
#pragma once

#include <fenv.h>
#include <stdint.h>

#include <algorithm>

#include "pool.h"

#ifdef _OPENMP
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include <vector>
#endif

namespace dropfast {

constexpr int64_t kElementsPerThread = 1 << 17;  // 25 us and more: below, a team costs more than it brings

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

// ---- OpenMP

#ifdef _OPENMP

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
// where another library started them, and dropfast is loaded only in the child. So a child has threads of its own.
inline std::atomic<bool> forked{is_fork()};
#ifndef _WIN32
[[maybe_unused]] inline const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

// How many of these threads can be had. libgomp ends the process if it cannot start one, as under a limit on memory or
// on processes; so whenever this thread's team is about to grow, the newcomers are started for a moment first.
inline int startable(int threads) {
  thread_local int team = 1;  // of this thread's last region: libgomp keeps it
  std::vector<std::thread> newcomers;
  std::mutex mutex;
  std::unique_lock<std::mutex> all_there(mutex);
  try {
    while (team + (int)newcomers.size() < threads) {
      newcomers.emplace_back([&] { const std::lock_guard<std::mutex> wait(mutex); });
    }
  } catch (const std::exception&) {
    threads = team + (int)newcomers.size();
  }
  all_there.unlock();
  for (std::thread& newcomer : newcomers) newcomer.join();
  return team = threads;
}

#endif

// ---- work

// Calls work(t) for every t < pieces, on several threads if they can be had. With OpenMP these are the whole team that
// the caller may have, though some have nothing to do: a smaller team ends the other threads (libgomp's
// gomp_team_start), and the next parallel region, of ours or of PyTorch's, would have to start them again.
template <class Work>
void run_parallel(int pieces, [[maybe_unused]] int team, const Work& work) {
  const auto one = [&](int t) {
    const DefaultFloatingPoint mode;
    work(t);
  };
  if (pieces == 1) return one(0);
#ifdef _OPENMP
  if (!forked) {
    const int threads = startable(team);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < pieces; ++t) one(t);
    return;
  }
#endif
  Pool::run(pieces, one);
}

}  // namespace dropfast
