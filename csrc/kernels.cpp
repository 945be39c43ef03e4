// The kernels, in one text that is compiled once per instruction set (-DDROPFAST_ISA=avx2 ...).
#include "kernels.h"

#include "compress.h"
#include "draw.h"
#include "select.h"

namespace dropfast {
namespace DROPFAST_ISA {
namespace {

void draw(uint64_t key, uint32_t draw, uint64_t threshold, const uint64_t* blocks, int n, uint64_t* keep) {
  draw_blocks(Philox(key, draw), threshold, Listed{blocks}, n, keep, Nothing());
}

template <class D>
void select(const void* x, void* out, int64_t n, const uint64_t* keep, int64_t first, double scale, bool streaming,
            Rows rows) {
  const auto select_rows = [&](const auto& run) {
    const char* from = (const char*)x;
    char* to = (char*)out;
    for (int64_t r = rows.n; r > 0; --r, from += rows.x, to += rows.out, first += n) {
      run(from, to, n, keep, first, (typename D::Scale)scale);
    }
  };
  if (n < kLanes<D>) return select_rows(part_of_vector<D>);
  const bool aligned = ((uintptr_t)out | (uintptr_t)rows.out) % kSize<D> == 0;
  if (streaming && aligned) return select_rows(select_run<D, true>);
  select_rows(select_run<D, false>);
}

// ---- both, for a long run

// Groups of elements whose bits are there, selected one by one in the pauses of a draw: the next bits are computed
// while these elements come and go.
template <class D, bool kStreaming>
struct Selection {
  const char* x;
  char* out;
  typename D::Scale scale;
  int every;  // how many pauses there are for each group, a power of two
  int64_t groups = 0;
  const uint64_t* word = nullptr;
  int shift = 0;

  inline __attribute__((always_inline)) void one() {
    select_group<D, kStreaming>(x, out, scale, word, shift);
    x += kGroup<D> * kSize<D>;
    out += kGroup<D> * kSize<D>;
    word += kGroup<D> / 64;
    --groups;
  }
  inline __attribute__((always_inline)) void operator()(int pause) {
    if ((pause & (every - 1)) == 0 && groups > 0) one();
  }
  void rest() {
    while (groups > 0) one();
  }
};

// Whether that pays. It does where vectors are wide (of np.copyto, Zen 4, 1024x1024 float32, rates 0.5 and 0.1: AVX-512
// 0.80 -> 0.91 and 0.42 -> 0.61, AVX2 0.77 -> 0.86 and 0.36 -> 0.42); with SSE2 it costs (0.56 -> 0.46 at 0.5).
constexpr bool kUsePauses = kBytes > 16;

// The bits are drawn a turn at a time, and those of one turn are used while the next are drawn. Turns are long enough
// for vectors to be filled with their undecided blocks, short enough for their words to stay in L1, and several, for
// the first has nothing to go on meanwhile.
constexpr int kLongestTurn = 256, kShortestTurn = 32;  // blocks
inline int turn_of(uint64_t blocks) {
  const uint64_t turn = blocks / 8 / kDrawGroup * kDrawGroup;
  return turn < kShortestTurn ? kShortestTurn : turn > kLongestTurn ? kLongestTurn : (int)turn;
}

template <class D, bool kStreaming>
void drop_run(const Philox& philox, uint64_t threshold, uint64_t index, const char* x, char* out, int64_t n,
              typename D::Scale scale) {
  constexpr int kGroupsEach = kBlocksAtOnce * kBlockBits / kGroup<D>;
  Selection<D, kStreaming> selection = {x, out, scale, 1};
  while (selection.every < kPauses && 2 * selection.every * kGroupsEach <= kPauses * planes_for_all(threshold)) {
    selection.every *= 2;
  }

  // Two turns, each behind the words of the one before it that are left: fewer than a group of elements needs.
  constexpr int kLeft = kGroup<D> / 64, kFront = kLanes64;
  static_assert(kLeft <= kFront, "what is left goes before an aligned turn");
  alignas(kBytes) uint64_t buffers[2][kFront + 2 * kLongestTurn + 1];
  uint64_t *words = buffers[0] + kFront, *next = buffers[1] + kFront;
  uint64_t block = index / kBlockBits;
  const uint64_t end = (index + (uint64_t)n + kBlockBits - 1) / kBlockBits;
  const int turn = turn_of(end - block);
  const int64_t turn_bits = turn * kBlockBits;
  words[2 * turn] = next[2 * turn] = 0;  // behind the last bit

  // The first turn, and what lies before an aligned address.
  const auto blocks_of_turn = [&] { return (int)smaller(turn, (int64_t)(end - block)); };
  const int first = blocks_of_turn();
  draw_blocks(philox, threshold, Following{block}, first, words, Nothing());
  block += (uint64_t)first;
  int64_t bit = (int64_t)(index % kBlockBits);  // of the first element that is not selected, from words on
  const int64_t head = smaller(n, before_aligned<D>(out));
  part_of_vector<D>(x, out, head, words, bit, scale);
  selection.x += head * kSize<D>;
  selection.out += head * kSize<D>;
  bit += head;
  n -= head;
  selection.word = words + (bit >> 6);
  selection.shift = bit & 63;
  selection.groups = smaller(n, first * kBlockBits - bit) / kGroup<D>;
  bit += selection.groups * kGroup<D>;
  n -= selection.groups * kGroup<D>;
  if (block == end) {
    selection.rest();
    return select_run<D, false>(selection.x, selection.out, n, words, bit, scale);
  }

  // Whole turns. Each leaves as few bits as the one before, and so its groups begin at the same bit.
  bit -= turn_bits;
  const auto go_on = [&](int blocks, auto&& meanwhile) {
    memcpy(next - kLeft, words + 2 * turn - kLeft, kLeft * sizeof *words);
    draw_blocks(philox, threshold, Following{block}, blocks, next, meanwhile);
    block += (uint64_t)blocks;
    uint64_t* drawn = next;
    next = words;
    words = drawn;
  };
  while (n >= turn_bits) {
    if constexpr (kUsePauses) {
      go_on(turn, selection);
      selection.rest();
    } else {
      selection.rest();
      go_on(turn, Nothing());
    }
    selection.word = words + (bit >> 6);
    selection.groups = turn_bits / kGroup<D>;
    n -= turn_bits;
  }
  selection.rest();

  // What is left; the last whole turn may have brought its bits already.
  go_on(block < end ? blocks_of_turn() : 0, Nothing());
  select_run<D, false>(selection.x, selection.out, n, words - kLeft, bit + 64 * kLeft, scale);
}

template <class D>
void drop(uint64_t key, uint32_t draw, uint64_t threshold, uint64_t index, const void* x, void* out, int64_t n,
          double scale, bool streaming) {
  const bool aligned = (uintptr_t)out % kSize<D> == 0;
  const auto run = streaming && aligned ? drop_run<D, true> : drop_run<D, false>;
  run(Philox(key, draw), threshold, index, (const char*)x, (char*)out, n, (typename D::Scale)scale);
}

void bits_of_bytes(const uint8_t* bytes, int64_t n, uint64_t* bits) {
  const auto word = [](const uint8_t* bytes) {
    uint64_t bits = 0;
    for (int i = 0; i < 64; i += kBytes) bits |= nonzero_lanes(load<u8v>(bytes + i)) << i;
    return bits;
  };
  for (; n >= 64; n -= 64, bytes += 64) *bits++ = word(bytes);
  if (n > 0) {
    uint8_t rest[64] = {};
    memcpy(rest, bytes, (size_t)n);
    *bits = word(rest);
  }
}

// Halves of squares change places across the diagonal, then quarters in these, and so on.
static_assert(kSquares % kLanes64 == 0, "squares are transposed by whole vectors");
void transpose(uint64_t* rows, int n) {
  uint64_t lower = 0xffffffff;  // the columns that stay in the upper rows of a block
  for (int half = 32; half > 0; half /= 2, lower ^= lower << half) {
    for (int block = 0; block < 64; block += 2 * half) {
      for (int r = block; r < block + half; ++r) {
        for (int s = 0; s < n; s += kLanes64) {
          uint64_t *upper = rows + r * kSquares + s, *other = upper + half * kSquares;
          const u64v a = load<u64v>(upper), b = load<u64v>(other);
          const u64v change = (a >> splat64((uint64_t)half) ^ b) & splat64(lower);
          store(upper, a ^ change << splat64((uint64_t)half));
          store(other, b ^ change);
        }
      }
    }
  }
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {
    draw,
    {select<Float16>, select<BFloat16>, select<Float32<f32s>>, select<Float64<f64s>>, select<Bool>},
    {drop<Float16>, drop<BFloat16>, drop<Float32<f32v>>, drop<Float64<f64v>>, drop<Bool>},
    {{compress<ThinFloat16>, compress<ThinBFloat16>, compress<ThinFloat32>, compress<ThinFloat64>},
     {expand<ThinFloat16>, expand<ThinBFloat16>, expand<ThinFloat32>, expand<ThinFloat64>},
     {add<ThinFloat16>, add<ThinBFloat16>, add<ThinFloat32>, add<ThinFloat64>}},
    bits_of_bytes,
    transpose,
    stream_fence};

}  // namespace DROPFAST_ISA
}  // namespace dropfast
