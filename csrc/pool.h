// A pool of threads of the standard library, kept between calls: for where there is no OpenMP, and for the children of
// forks, where OpenMP's threads are gone.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

#include "bits.h"

#ifndef _WIN32
#include <pthread.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace dropfast {

// ---- waiting

inline void pause() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Where threads wait for what others bring about. To fall asleep and to be woken takes as long as a piece of work, so
// they stay awake for a while, which is for the next layer of a network (a call of 2^18 elements 1 ms behind the last
// one took 53 us with 0.2 ms, 30 with 2 ms and 24 with 5 ms); and soon leave their core to whoever wants it.
class Bell {
 public:
  template <class Ready>
  void wait(const Ready& ready) {
    const auto begin = std::chrono::steady_clock::now();
    for (auto waited = begin - begin; waited < kAwake; waited = std::chrono::steady_clock::now() - begin) {
      if (waited > kAlone) std::this_thread::yield();
      for (int i = 0; i < kLooks; ++i, pause()) {
        if (ready()) return;
      }
    }
    std::unique_lock<std::mutex> lock(mutex_);
    ++asleep_;
    condition_.wait(lock, ready);
    --asleep_;
  }

  // To be called after what they wait for. Either this sees who is asleep, or who falls asleep sees that it is there:
  // both are sequentially consistent.
  void ring() {
    if (asleep_ == 0) return;
    mutex_.lock();  // by then who is about to fall asleep has
    mutex_.unlock();
    condition_.notify_all();
  }

 private:
  static constexpr int kLooks = 64;
  static constexpr std::chrono::microseconds kAlone{50}, kAwake{2000};

  std::mutex mutex_;
  std::condition_variable condition_;
  std::atomic<int> asleep_{0};
};

// ---- work

// Work in pieces, of which each is done once, by any thread.
class Job {
 public:
  template <class Work>
  Job(int pieces, const Work& work)
      : pieces_(pieces), work_(&work), run_([](const void* work, int t) { (*static_cast<const Work*>(work))(t); }) {
    for (int n = std::min(pieces, kMost), word = 0; n > 0; n -= 64) {
      left_[word++].store(low_bits(n), std::memory_order_relaxed);
    }
  }

  // Takes a piece and returns its number, or -1 if none is left: the one that is wished for, else one of the last,
  // which belong to those who are woken last.
  int take(int wish) {
    uint64_t wished = uint64_t{1} << wish % 64;
    for (int n = 0; n < kWords; ++n, wished = 0) {
      const int word = (wish / 64 + n) % kWords;
      for (uint64_t left = left_[word]; left != 0;) {
        const uint64_t last = uint64_t{1} << (63 - __builtin_clzll(left)), bit = left & wished ? wished : last;
        left = left_[word].fetch_and(~bit);
        if (left & bit) return 64 * word + __builtin_ctzll(bit);
      }
    }
    return -1;
  }

  void run(int piece) const {
    for (int t = piece; t < pieces_; t += kMost) run_(work_, t);
  }

  static constexpr int kWords = 16, kMost = 64 * kWords;  // that are taken one by one

  std::atomic<int> helpers{0};  // that know of it; it must stay until there is none

 private:
  const int pieces_;
  const void* const work_;
  void (*const run_)(const void* work, int t);
  std::atomic<uint64_t> left_[kWords] = {};
};

// Helpers take pieces of the jobs that are offered to them. A caller does itself what nobody has begun, so it needs
// none of them: not if they cannot be started, nor if they are busy with the job of another caller. Several callers
// share them, so there are never more than the largest job asks for.
//
// Neither a pool nor a helper ever ends. At the end of the process a helper may be anywhere in its work, and whoever
// waited for it there would wait for ever on Windows, which has ended it by then; and Python unloads no module.
class Pool {
 public:
  // Calls work(t) for every t < pieces, on as many threads if they can be had.
  template <class Work>
  static void run(int pieces, const Work& work) {
    Job job(pieces, work);
    Pool* const pool = get();
    if (pool) pool->start(std::min(pieces, Job::kMost) - 1);
    for (int t = job.take(0); t >= 0;) {
      if (pool) pool->offer(job, pieces - 1);  // again and again: the helpers may have been another caller's
      job.run(t);
      t = job.take(t);
    }
    if (pool) pool->withdraw(job);
  }

 private:
  struct Helper {
    Helper(Pool& pool, int number) : pool(pool), number(number) {}

    Pool& pool;
    const int number;  // from 1 on, the callers being 0: also of the piece whose memory it may have in its cache
    std::atomic<Job*> offered{nullptr};
    Bell bell;
    std::atomic<Helper*> next{nullptr};
  };

  static Pool* get() {
    Pool* pool = the_pool_;
    if (pool) return pool;
    Pool* const made = new (std::nothrow) Pool;
    if (!made || the_pool_.compare_exchange_strong(pool, made)) return made;
    delete made;  // another caller was faster
    return pool;
  }

  void start(int helpers) {
    if (started_ >= helpers) return;
    const std::lock_guard<std::mutex> lock(starting_);
    for (; started_ < helpers; ++started_) {
      std::unique_ptr<Helper> helper(new (std::nothrow) Helper(*this, started_ + 1));
      if (!helper || !start_thread(helper.get())) return;
      *last_ = helper.get();
      last_ = &helper.release()->next;
    }
  }

  // Whether it could be started. Its stack has room for a piece on every system: tiles of rows take 100 KiB, and musl
  // would give 128.
  static bool start_thread(Helper* helper) {
    const auto serve = [](void* helper) -> void* {
      static_cast<Helper*>(helper)->pool.serve(*static_cast<Helper*>(helper));
      return nullptr;
    };
#ifdef _WIN32
    try {
      std::thread(serve, helper).detach();
      return true;
    } catch (const std::exception&) {
      return false;
    }
#else
    pthread_t thread;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return false;
    pthread_attr_setstacksize(&attributes, 1 << 20);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    const bool is_started = pthread_create(&thread, &attributes, serve, helper) == 0;
    pthread_attr_destroy(&attributes);
    return is_started;
#endif
  }

  void serve(Helper& mine) {
    for (;;) {
      Job* job;
      mine.bell.wait([&] { return (job = mine.offered) != nullptr; });
      if (!mine.offered.compare_exchange_strong(job, nullptr)) continue;  // withdrawn
      for (int t = job->take(mine.number); t >= 0; t = job->take(t)) job->run(t);
      if (--job->helpers == 0) left_.ring();  // the job may be gone by now
    }
  }

  void offer(Job& job, int helpers) {
    Helper* helper = first_;
    for (int n = 0; n < helpers && helper; ++n, helper = helper->next) {
      Job* none = nullptr;
      ++job.helpers;
      if (helper->offered.compare_exchange_strong(none, &job)) {
        helper->bell.ring();
      } else {
        --job.helpers;
      }
    }
  }

  // Returns when no helper knows of the job.
  void withdraw(Job& job) {
    for (Helper* helper = first_; helper && job.helpers > 0; helper = helper->next) {
      Job* offered = &job;
      if (helper->offered.compare_exchange_strong(offered, nullptr)) --job.helpers;
    }
    left_.wait([&] { return job.helpers == 0; });
  }

  std::mutex starting_;
  std::atomic<int> started_{0};
  std::atomic<Helper*> first_{nullptr};
  std::atomic<Helper*>* last_ = &first_;
  Bell left_;  // rung when the last helper leaves a job

  // Forks have none of the threads, and perhaps a mutex that nobody will ever release, so they begin anew.
  static inline std::atomic<Pool*> the_pool_{nullptr};
#ifndef _WIN32
  static inline const int at_fork_ = pthread_atfork(nullptr, nullptr, [] { the_pool_ = nullptr; });
#endif
};

// ---- how many

// The processors that this process may run on.
inline int processors() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);  // fails from 1025 on
#endif
  return std::max(1, (int)std::thread::hardware_concurrency());
}

// The first number of OMP_NUM_THREADS, or 0 if it is not set to a list of positive numbers, as OpenMP sees it.
inline int asked_for() {
  const char* at = std::getenv("OMP_NUM_THREADS");
  for (int first = 0; at; ++at) {
    errno = 0;
    char* end;
    const long n = std::strtol(at, &end, 10);
    if (end == at || n < 1 || errno != 0) return 0;
    if (first == 0) first = (int)std::min<long>(n, Job::kMost);
    while (std::isspace((unsigned char)*end)) ++end;
    if (*end == 0) return first;
    if (*end != ',') return 0;
    at = end;
  }
  return 0;
}

}  // namespace dropfast
