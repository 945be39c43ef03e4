// The ordered list of instruction sets, and which of them this CPU has.
#include "kernels.h"

namespace dropfast {

// DROPFAST_ISAS is X(name) for each one that CMake compiled, best first.
#define X(isa)                  \
  namespace isa {               \
  extern const Kernels kernels; \
  }
DROPFAST_ISAS
#undef X

namespace {

#if defined(__x86_64__)

// The CPU is asked directly: the compilers' __builtin_cpu_supports learnt of F16C late, does not link by clang-cl, and
// knows nothing by zig.
struct Words {
  unsigned a, b, c, d;
};

Words cpuid(unsigned leaf) {
  Words is{};
  const auto ask = [&](unsigned leaf) {
    asm volatile("cpuid" : "=a"(is.a), "=b"(is.b), "=c"(is.c), "=d"(is.d) : "a"(leaf), "c"(0));
  };
  ask(0);
  const bool known = leaf <= is.a;
  is = {};
  if (known) ask(leaf);
  return is;
}

bool bit(unsigned word, int n) { return (word >> n & 1) != 0; }

// Whether the system saves these registers, by bits of XCR0. macOS says so of AVX-512's in threads alone that have used
// them, so that AVX2 is chosen there.
bool saves(unsigned registers) {
  if (!bit(cpuid(1).c, 27)) return false;  // OSXSAVE: it would not be asked
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & registers) == registers;
}

#endif

// `baseline` needs what every CPU of its architecture has, and so does `neon` on aarch64.
namespace runs_here {
[[maybe_unused]] bool baseline() { return true; }
[[maybe_unused]] bool neon() { return true; }
#if defined(__x86_64__)
[[maybe_unused]] bool avx2() {
  return saves(0x6) && bit(cpuid(1).c, 29) && bit(cpuid(7).b, 5);  // XMM and YMM; F16C, AVX2
}
[[maybe_unused]] bool avx512() {
  const unsigned b = cpuid(7).b;
  return avx2() && saves(0xe0) && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);  // masks, ZMM; F, DQ, BW, VL
}
#endif
}  // namespace runs_here

}  // namespace

const Isa* isas(int* n) {
#define X(isa) {#isa, &isa::kernels, runs_here::isa()},
  static const Isa list[] = {DROPFAST_ISAS};
#undef X
  *n = sizeof list / sizeof list[0];
  return list;
}

}  // namespace dropfast
