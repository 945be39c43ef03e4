// The engine for arrays from which what a mask drops is left out.
#pragma once

#include <stdint.h>

#include "dropfast.h"
#include "kernels.h"

namespace dropfast {

struct ThinAxis {
  int64_t length;         // in the wide array
  int64_t wide, compact;  // strides in bytes, of any sign, that need not be aligned
  const uint8_t* bits;    // which positions the compact array has, as packed() writes them; null for all
};

// How many are kept of an axis.
int64_t kept(const ThinAxis& axis);

// Moves elements between a wide array and a compact one, which has only those whose positions are kept along all axes:
//   kCompress  compact = wide where kept
//   kExpand    wide = compact where kept, +0.0 elsewhere
//   kAdd       wide += *factor * compact where kept
// The first two times *factor, or as they are if it is null. Calls `poll`, if given, every kSlabElements; it may throw.
void thin(Move move, dropfast_dtype dtype, void* wide, void* compact, const ThinAxis* axes, int n, const double* factor,
          void (*poll)() = nullptr);

}  // namespace dropfast
