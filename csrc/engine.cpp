// The doors' functions: merges the axes of a mask, and divides the work among threads.
#include "engine.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <atomic>

#include "batch.h"
#include "bits.h"
#include "kernels.h"
#include "moved.h"
#include "piece.h"
#include "threads.h"

namespace dropfast {
namespace {

// ---- choice of kernels

const Isa* best_isa() {
  int n;
  const Isa* isa = isas(&n);
  while (!isa->supported) ++isa;  // the last, baseline, always is
  return isa;
}

std::atomic<const Isa*> chosen{best_isa()};

// ---- axes

bool continues(const Axis& outer, const Axis& inner) {
  // Unsigned: the index of a whole mask of 2^63 elements ends where an int64_t does.
  return outer.x == inner.length * inner.x && outer.out == inner.length * inner.out &&
         (uint64_t)outer.mask == (uint64_t)inner.length * (uint64_t)inner.mask;
}

// Adds an axis inside n others: one with the last of them where it goes on where that ends, so that they are few.
void add_inside(Axis* axes, int& n, const Axis& inner) {
  if (n > 0 && continues(axes[n - 1], inner)) {
    axes[n - 1] = {axes[n - 1].length * inner.length, inner.x, inner.out, inner.mask};
  } else {
    axes[n++] = inner;
  }
}

// The axes of a mask. Returns how many; none for a single element.
int merge_axes(const dropfast_mask& mask, const int64_t* x_strides, const int64_t* out_strides, Axis* axes) {
  // Beside an empty axis others may be longer than can be multiplied.
  if (std::find(mask.shape, mask.shape + mask.ndim, 0) != mask.shape + mask.ndim) {
    axes[0] = {};
    return 1;
  }
  int n = 0;
  for (int d = 0; d < mask.ndim; ++d) {
    if (mask.shape[d] > 1) add_inside(axes, n, {mask.shape[d], x_strides[d], out_strides[d], mask.strides[d]});
  }
  return n;
}

// ---- threads

// Outputs from here on go past the caches. Measured with 32 MiB of L3, that is 1.3 times as fast from 16 MiB on; at 8
// MiB it would be, too, but whoever reads the output next should find it in the cache if it fits.
constexpr int64_t kStreamingBytes = 16 * (1 << 20);

std::atomic<int> thread_limit{1 << 30};

// Without OpenMP, which has numbers of its own for this and for omp_set_num_threads.
[[maybe_unused]] std::atomic<int> pool_threads{asked_for() > 0 ? asked_for() : processors()};

// The axis to divide among threads: the outermost that is long enough, else the longest.
int axis_to_divide(const Axis* axes, int n, int threads) {
  int longest = 0;
  for (int d = 0; d < n; ++d) {
    if (axes[d].length >= 16 * threads) return d;
    if (axes[d].length > axes[longest].length) longest = d;
  }
  return longest;
}

// Calls work(axes, x, out, start) for all of these elements, or on several threads for parts of them.
template <class Work>
void on_threads(Axis* axes, int n, const char* x, char* out, uint64_t start, const Work& work) {
  int64_t size = 1;
  for (int d = 0; d < n; ++d) size *= axes[d].length;
  if (size < 2 * kElementsPerThread) {
    const DefaultFloatingPoint mode;
    return work(axes, x, out, start);
  }
  const int team = max_threads();
  int threads = (int)std::min<int64_t>(team, size / kElementsPerThread);
  const int divided = axis_to_divide(axes, n, threads);
  // Along the run of bits pieces begin at whole multiples of 8 blocks; elsewhere anywhere.
  const int64_t unit = axes[divided].mask == 1 ? 8 * kBlockBits : 1;
  const int64_t units = (axes[divided].length + unit - 1) / unit;
  threads = (int)std::min<int64_t>(threads, units);
  run_parallel(threads, team, [&](int t) {
    const int64_t begin = units * t / threads * unit;
    const int64_t end = std::min(units * (t + 1) / threads * unit, axes[divided].length);
    Axis mine[DROPFAST_MAX_NDIM];
    std::copy(axes, axes + n, mine);
    mine[divided].length = end - begin;
    const Axis& axis = axes[divided];
    work(mine, x + begin * axis.x, out + begin * axis.out, start + (uint64_t)begin * (uint64_t)axis.mask);
  });
}

}  // namespace

// ---- the doors' functions

uint64_t threshold(double rate) { return (uint64_t)nearbyint(rate * 0x1p32); }

void apply(const dropfast_mask* mask, dropfast_dtype dtype, const void* x, const int64_t* x_strides, void* out,
           const int64_t* out_strides) {
  Axis axes[DROPFAST_MAX_NDIM];
  const int n = merge_axes(*mask, x_strides, out_strides, axes);
  int64_t size = 1;
  for (int d = 0; d < n; ++d) size *= axes[d].length;
  if (size == 0) return;

  const Kernels& kernels = kernels_in_use();
  const bool streaming = x != out && size * kItemSize[dtype] >= kStreamingBytes;
  on_threads(axes, n, (const char*)x, (char*)out, mask->start,
             [&](Axis* mine, const char* x, char* out, uint64_t start) {
               if (!is_moved(mine, n, kItemSize[dtype])) {
                 return Piece(kernels, *mask, dtype, mine, n, streaming).apply(x, out, start);
               }
               in_parts(mine, n, x, out, start, [&](const Axis* part, const char* x, char* out, uint64_t start) {
                 move(part, n, x, out, kItemSize[dtype]);
                 Axis in_place[DROPFAST_MAX_NDIM];
                 int merged = 0;
                 for (const Axis* axis = part; axis < part + n; ++axis) {
                   add_inside(in_place, merged, {axis->length, axis->out, axis->out, axis->mask});
                 }
                 Piece(kernels, *mask, dtype, in_place, merged, false).apply(out, out, start);
               });
             });
}

void apply_and_keep(const dropfast_mask* mask, dropfast_dtype dtype, const void* x, const int64_t* x_strides, void* out,
                    const int64_t* out_strides, void* kept, const int64_t* kept_strides) {
  Axis axes[DROPFAST_MAX_NDIM], places[DROPFAST_MAX_NDIM];
  const int n = merge_axes(*mask, x_strides, out_strides, axes);
  const int64_t size = kItemSize[dtype];
  const auto is_run = [](int n, const Axis& axis, int64_t size) {
    return n == 1 && axis.x == size && axis.out == size && axis.mask == 1;
  };
  if (!is_run(n, axes[0], size) || !is_run(merge_axes(*mask, kept_strides, kept_strides, places), places[0], 1)) {
    apply(mask, dtype, x, x_strides, out, out_strides);
    return apply(mask, DROPFAST_BOOL, kept, kept_strides, kept, kept_strides);
  }
  const Kernels& kernels = kernels_in_use();
  const double scale = scale_of(mask->threshold);
  on_threads(axes, n, (const char*)x, (char*)out, mask->start,
             [&](const Axis* run, const char* x, char* to, uint64_t start) {
               const auto use = [&](const Part* parts, int n, const uint64_t* keep) {
                 for (const Part* p = parts; p < parts + n; ++p) {
                   char* y = p->out + p->position * size;
                   kernels.select[dtype](p->x + p->position * size, y, p->n, keep, p->first, scale, false, kOneRow);
                   char* bytes = (char*)kept + (y - (char*)out) / size;
                   kernels.select[DROPFAST_BOOL](bytes, bytes, p->n, keep, p->first, 1, false, kOneRow);
                 }
               };
               Batch<decltype(use)> batch(kernels, *mask, use);
               batch.add(x, to, start, run->length);
               batch.flush();
             });
}

void select(dropfast_dtype dtype, const void* x, void* out, int64_t n, const uint8_t* kept, double scale) {
  const Kernels& kernels = kernels_in_use();
  const int64_t size = kItemSize[dtype];
  Axis axis = {n, size, size, 1};
  on_threads(&axis, 1, (const char*)x, (char*)out, 0, [&](const Axis* run, const char* x, char* out, uint64_t first) {
    constexpr int64_t kAtOnce = 4096;
    uint64_t keep[kAtOnce / 64 + 1] = {};
    for (int64_t i = 0; i < run->length; i += kAtOnce) {
      const int64_t count = std::min(kAtOnce, run->length - i);
      kernels.bits_of_bytes(kept + first + i, count, keep);
      kernels.select[dtype](x + i * size, out + i * size, count, keep, 0, scale, false, kOneRow);
    }
  });
}

void packed(const dropfast_mask* mask, uint8_t* out, void (*poll)()) {
  const int64_t no_strides[DROPFAST_MAX_NDIM] = {};
  Axes axes;
  axes.n = merge_axes(*mask, no_strides, no_strides, axes.axes);
  Axis run = {1, 0, 0, 1};
  if (axes.take([](const Axis& axis) { return axis.length == 0; }, run)) return;
  if (axes.n > 0 && axes.axes[axes.n - 1].mask == 1) run = axes.axes[--axes.n];

  uint64_t words[2 * kBatchBlocks + 1];  // bits that come
  uint64_t rest = 0;                     // bits that do not fill a byte yet
  int64_t rest_n = 0, until_poll = kSlabElements;
  const auto put = [&](const uint64_t* keep, int64_t first, int64_t n) {
    BitWriter writer(words);
    writer.put(rest, rest_n);
    writer.put(keep, first, n);
    writer.end();
    const int64_t bits = rest_n + n, bytes = bits / 8;
    int64_t i = 0;
    for (; i + 8 <= bytes; i += 8) {  // compilers make one store of these eight, where the byte order is the machine's
      for (int j = 0; j < 8; ++j) out[i + j] = (uint8_t)(words[i >> 3] >> (8 * j));
    }
    for (; i < bytes; ++i) out[i] = (uint8_t)(words[i >> 3] >> (8 * (i & 7)));
    out += bytes;
    rest_n = bits % 8;
    rest = rest_n > 0 ? words[bytes >> 3] >> (8 * (bytes & 7)) : 0;
    until_poll -= n;
    if (until_poll <= 0 && poll) {
      poll();
      until_poll = kSlabElements;
    }
  };
  const auto use = [&](const Part* parts, int parts_n, const uint64_t* keep) {
    for (int p = 0; p < parts_n; ++p) put(keep, parts[p].first, parts[p].n);
  };
  Batch<decltype(use)> batch(kernels_in_use(), *mask, use);
  axes.for_each(nullptr, nullptr, mask->start,
                [&](const char* x, char* o, uint64_t index) { batch.add(x, o, index, run.length); });
  batch.flush();
  if (rest_n > 0) *out = (uint8_t)rest;
}

const Kernels& kernels_in_use() { return *chosen.load(std::memory_order_relaxed)->kernels; }

const char* current_isa() { return chosen.load()->name; }

bool use_isa(const char* name) {
  int n;
  const Isa* list = isas(&n);
  for (int i = 0; i < n; ++i) {
    if (list[i].supported && strcmp(list[i].name, name) == 0) {
      chosen = &list[i];
      return true;
    }
  }
  return false;
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

// Read afresh by every call, and OpenMP's never set by us: so OMP_NUM_THREADS and threadpoolctl govern it.
int max_threads() {
#ifdef _OPENMP
  return omp_in_parallel() ? 1 : std::min<int>(omp_get_max_threads(), thread_limit);
#else
  return std::min<int>(pool_threads, thread_limit);
#endif
}

void limit_threads(int n) { thread_limit = n; }

void set_pool_threads(int n) { pool_threads = n; }  // GCOV_EXCL_LINE - for builds without OpenMP

const char* threading() {
#ifdef _OPENMP
  if (!forked) return "openmp";
#endif
  return "pool";
}

}  // namespace dropfast
