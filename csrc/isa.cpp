// The ordered list of instruction sets, and which of them this CPU has.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

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

// `baseline` needs what every CPU of its architecture has, and so does `neon` on aarch64.
namespace runs_here {
[[maybe_unused]] bool baseline() { return true; }
[[maybe_unused]] bool neon() { return true; }
#if defined(__x86_64__)
[[maybe_unused]] bool avx2() {
  unsigned a, b, c, d;  // asked directly: __builtin_cpu_supports learnt of F16C late
  return __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
[[maybe_unused]] bool avx512() {
  return avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
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
