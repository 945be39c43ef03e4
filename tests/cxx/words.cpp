// Random words for a battery of statistical tests, on standard output until the reader has enough: tests/dieharder.
//
//   words raw    all 32 planes of block after block: everything that masks are made from
//   words mask   the bits of one mask of rate 0.5
//   words keys   the first block, at rate 0.5, of key after key: for neighbouring keys must not be alike
//
// By the kernels themselves, compiled for one instruction set as CMakeLists.txt does.
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "engine.h"
#include "philox.h"

namespace {

using namespace dropfast::DROPFAST_ISA;

constexpr uint64_t kKey = 0x0123456789abcdef;
constexpr uint32_t kDraw = 7;
constexpr int kBlocks = 4096;  // written at a time

using Words = std::vector<uint64_t>;  // little-endian here, as x86 and AArch64 are

Words raw(uint64_t turn) {
  static const Philox philox(kKey, kDraw);
  Words words;
  for (uint64_t b = turn * (kBlocks / 32); b < (turn + 1) * (kBlocks / 32); b += kLanes64) {
    uint64_t numbers[kLanes64];
    for (int lane = 0; lane < kLanes64; ++lane) numbers[lane] = b + (uint64_t)lane;
    const Blocks blocks[1] = {philox.prepare(load<u64v>(numbers))};
    u64v low[32], high[32];
    for (int k = 0; k < 32; ++k) {
      u64v plane_low[1], plane_high[1];
      philox.plane(blocks, k, plane_low, plane_high);
      low[k] = plane_low[0];
      high[k] = plane_high[0];
    }
    for (int lane = 0; lane < kLanes64; ++lane) {
      for (int k = 0; k < 32; ++k) words.insert(words.end(), {low[k][lane], high[k][lane]});
    }
  }
  return words;
}

Words mask(uint64_t turn) {
  Words words(2 * kBlocks);
  const int64_t n = kBlocks * 128, stride = 1;
  const dropfast_mask mask = {kKey, dropfast::threshold(0.5), turn * kBlocks * 128, kDraw, 1, &n, &stride};
  dropfast::packed(&mask, reinterpret_cast<uint8_t*>(words.data()));
  return words;
}

Words keys(uint64_t turn) {  // at rate 0.5, plane 0 is the mask
  Words words;
  for (uint64_t key = turn * kBlocks; key < (turn + 1) * kBlocks; ++key) {
    const Philox philox(key, kDraw);
    const Blocks blocks[1] = {philox.prepare(u64v{})};
    u64v low[1], high[1];
    philox.plane(blocks, 0, low, high);
    words.insert(words.end(), {low[0][0], high[0][0]});
  }
  return words;
}

}  // namespace

int main(int argc, char** argv) {
  const char* name = argc == 2 ? argv[1] : "";
  const auto next = !strcmp(name, "raw") ? raw : !strcmp(name, "mask") ? mask : !strcmp(name, "keys") ? keys : nullptr;
  if (!next) return fprintf(stderr, "usage: words raw|mask|keys\n"), 2;
  for (uint64_t turn = 0;; ++turn) {
    const Words words = next(turn);
    const size_t bytes = words.size() * sizeof words[0];
    if (fwrite(words.data(), 1, bytes, stdout) != bytes) return 0;
  }
}
