// The doors' functions: merges the axes of a mask, and divides the work among threads.
#include "engine.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <atomic>

#include "batch.h"
#include "bits.h"
#include "kernels.h"
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

// The same elements in the same order with as few axes as possible: an axis that goes on where the one inside it ends
// is one with it. Returns how many; none for a single element.
int merge_axes(const dropfast_mask& mask, const int64_t* x_strides, const int64_t* out_strides, Axis* axes) {
  // Beside an empty axis others may be longer than can be multiplied.
  if (std::find(mask.shape, mask.shape + mask.ndim, 0) != mask.shape + mask.ndim) {
    axes[0] = {};
    return 1;
  }
  int n = 0;
  for (int d = 0; d < mask.ndim; ++d) {
    if (mask.shape[d] == 1) continue;
    const Axis inner = {mask.shape[d], x_strides[d], out_strides[d], mask.strides[d]};
    if (n > 0 && continues(axes[n - 1], inner)) {
      axes[n - 1] = {axes[n - 1].length * inner.length, inner.x, inner.out, inner.mask};
    } else {
      axes[n++] = inner;
    }
  }
  return n;
}

// ---- threads

constexpr int64_t kElementsPerThread = 1 << 17;  // 25 us and more: below, a team costs more than it brings

// Outputs from here on go past the caches. Measured with 32 MiB of L3, that is 1.3 times as fast from 16 MiB on; at 8
// MiB it would be, too, but whoever reads the output next should find it in the cache if it fits.
constexpr int64_t kStreamingBytes = 16 * (1 << 20);

std::atomic<int> thread_limit{1 << 30};

// The axis to divide among threads: the outermost that is long enough, else the longest.
int axis_to_divide(const Axis* axes, int n, int threads) {
  int longest = 0;
  for (int d = 0; d < n; ++d) {
    if (axes[d].length >= 16 * threads) return d;
    if (axes[d].length > axes[longest].length) longest = d;
  }
  return longest;
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

  const Kernels& kernels = *chosen.load(std::memory_order_relaxed)->kernels;
  const bool streaming = x != out && size * kItemSize[dtype] >= kStreamingBytes;
  if (size < 2 * kElementsPerThread) {
    const DefaultFloatingPoint mode;
    Piece(kernels, *mask, dtype, axes, n, streaming).apply((const char*)x, (char*)out, mask->start);
    return;
  }

  int threads = (int)std::min<int64_t>(max_threads(), size / kElementsPerThread);
  const int divided = axis_to_divide(axes, n, threads);
  // Along the run of bits pieces begin at whole multiples of 8 blocks; elsewhere anywhere.
  const int64_t unit = axes[divided].mask == 1 ? 8 * kBlockBits : 1;
  const int64_t units = (axes[divided].length + unit - 1) / unit;
  threads = (int)std::min<int64_t>(threads, units);
  run_parallel(threads, [&](int t) {
    const int64_t begin = units * t / threads * unit;
    const int64_t end = std::min(units * (t + 1) / threads * unit, axes[divided].length);
    Axis mine[DROPFAST_MAX_NDIM];
    std::copy(axes, axes + n, mine);
    mine[divided].length = end - begin;
    const Axis& axis = axes[divided];
    Piece(kernels, *mask, dtype, mine, n, streaming)
        .apply((const char*)x + begin * axis.x, (char*)out + begin * axis.out,
               mask->start + (uint64_t)begin * (uint64_t)axis.mask);
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
  Batch<decltype(use)> batch(*chosen.load(std::memory_order_relaxed)->kernels, *mask, use);
  axes.for_each(nullptr, nullptr, mask->start,
                [&](const char* x, char* o, uint64_t index) { batch.add(x, o, index, run.length); });
  batch.flush();
  if (rest_n > 0) *out = (uint8_t)rest;
}

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

// Read afresh by every call, never set by us: so OMP_NUM_THREADS and threadpoolctl govern it.
int max_threads() {
#ifdef _OPENMP
  return omp_in_parallel() ? 1 : std::min<int>(omp_get_max_threads(), thread_limit);
#else
  return 1;
#endif
}

void limit_threads(int n) { thread_limit = n; }

}  // namespace dropfast
