"""Whether the tests would notice: faults are seeded into copies of the kernels, one at a time, and each must be caught.

Caught by tests/cxx/isas_agree.cpp, which holds the compiled kernels to the golden file and to the digest that all
machines have in common. `make mutants` runs this; it needs a C++ compiler ($CXX, else c++).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DIGEST = "1b9a0612af63da18"  # what isas_agree prints on every machine: the values, too, not the masks alone


class Fault(NamedTuple):
    """A text of a file, which must be there once, and what is put in its place."""

    file: str
    right: str
    wrong: str


FAULTS = {
    "no fault at all": Fault("engine.h", "#pragma once", "#pragma once"),
    # of the stream
    "two words swapped": Fault("philox.h", "low[n] = swap_halves(product1) ^", "low[n] = product1 ^"),
    "9 planes instead of 32": Fault("draw.h", "k < planes && undecided.n > 0", "k < 9 && undecided.n > 0"),
    "9 planes, rounded down": Fault(
        "draw.h",
        "const int planes = planes_needed(threshold);",
        "threshold |= 1u << 23;\n  threshold &= ~0u << 23;\n  const int planes = planes_needed(threshold);",
    ),
    "the block's high word lost": Fault("philox.h", "word0_round1_ ^ (block >> 32)", "word0_round1_"),
    "a block number of 32 bits": Fault(
        "batch.h",
        "const uint64_t block = index / kBlockBits;",
        "const uint64_t block = (uint32_t)(index / kBlockBits);",
    ),
    "an index of 32 bits": Fault("batch.h", "index += (uint64_t)n;", "index = (uint32_t)(index + (uint64_t)n);"),
    "a carry too many": Fault(
        "batch.h", "blocks_[b] = block + (uint64_t)(b - slot)", "blocks_[b] = block + (uint64_t)(b - slot) + (b > 255)"
    ),
    "<= for <": Fault(
        "draw.h",
        "const int planes = planes_needed(threshold);",
        "if (++threshold >> 32) --threshold;\n  const int planes = planes_needed(threshold);",
    ),
    "a block undecided twice": Fault("draw.h", "undecided.n = 0;", "undecided.n = n > 1;"),
    "a turn's last bits lost": Fault(
        "kernels.cpp", "words + 2 * turn - kLeft, kLeft", "words + 2 * turn - kLeft + 1, kLeft"
    ),
    "a turn's first bit one too late": Fault("kernels.cpp", "bit -= turn_bits;", "bit -= turn_bits - 1;"),
    "9 rounds": Fault("philox.h", "constexpr int kRounds = 10;", "constexpr int kRounds = 9;"),
    "another constant": Fault("philox.h", "0xbb67ae85", "0xbb67ae86"),
    "the draw forgotten": Fault("philox.h", "uint64_t{kMultiplier1} * draw", "uint64_t{kMultiplier1} * 0 * draw"),
    "half of the key": Fault("philox.h", "k1 = (uint32_t)(key >> 32)", "k1 = (uint32_t)key"),
    "ties away from even": Fault("engine.cpp", "nearbyint(rate * 0x1p32)", "(rate * 0x1p32 + 0.5)"),
    # of the values
    "nothing dropped": Fault("select.h", "scale), w, j);", "scale), ~uint64_t{0}, j);"),
    "bfloat16 cut instead of rounded": Fault("half.h", "return upper + (average", "return upper + 0 * (average"),
    "bfloat16 ties away from even": Fault("half.h", "(upper & splat16(1)) | splat16(0x7ffe)", "splat16(0x7fff)"),
    "a subnormal half flushed": Fault(
        "half.h", "choose(above(magnitude, 0x3ff), normal, tiny)", "choose(above(magnitude, 0x3ff), normal, splat32(0))"
    ),
    "a byte of a mask not 1": Fault("select.h", "return u8v{} + 1;", "return u8v{} + 2;"),
    "a byte of a mask overlooked": Fault(
        "kernels.cpp", "nonzero_lanes(load<u8v>(bytes + i)) << i", "(nonzero_lanes(load<u8v>(bytes + i)) & ~128u) << i"
    ),
    "a tail forgotten": Fault("select.h", "if (i < n) {", "if (i + 1 < n) {"),
    "a head forgotten": Fault("select.h", "if (begin > 0) store(", "if (begin > 1) store("),
    "scale of the rate's complement": Fault(
        "piece.h", "(double)((uint64_t{1} << 32) - threshold)", "(double)(~threshold & 0xffffffff)"
    ),
    "a square not transposed": Fault("kernels.cpp", "half > 0; half /= 2", "half > 1; half /= 2"),
    "a tile of one square": Fault("piece.h", "bit / 64 * step", "0 * step"),
    "a row's bits from its start": Fault("piece.h", "++t) writer.put(keep, first, n)", "++t) writer.put(keep, 0, n)"),
    "bits that are not reversed": Fault("bits.h", "writer.put(reversed(bits_from(", "writer.put((bits_from("),
    "a row of few misplaced": Fault("piece.h", "shift & 0xff] << r", "shift & 0xff] << (r ^ 1)"),
    "a row gathered from its start": Fault("piece.h", "x + place * inner.x", "x"),
    "a row of memory too early": Fault("piece.h", "x += rows.n * next_.x", "x += (rows.n - 1) * next_.x"),
    "a dropped row not cleared": Fault("thin.cpp", "clear(pair, d + 1, wide);", "(void)0;"),
    "an element that is dropped added to": Fault("compress.h", "choose_lanes(bits, ", "choose_lanes(~uint64_t{0}, "),
    "the last that is kept forgotten": Fault("compress.h", "(size_t)in_end * kSize", "(size_t)(in_end - 1) * kSize"),
    "bits of the run before": Fault(
        "thin.cpp", "bits = axis.bits ? axis.bits + i / 64", "bits = axis.bits ? axis.bits"
    ),
    "a part moved to the first's place": Fault("moved.h", "start + (uint64_t)half * (uint64_t)cut->mask", "start"),
    "a tile's column of another": Fault("moved.h", "tile + c * kRows * size", "tile + (c ^ 1) * kRows * size"),
    "a column of the run before": Fault("piece.h", "next * next_.x + in_run", "0 * next_.x + in_run"),
}


def caught(name: str, folder: Path) -> str:
    """Build with a fault and run; return what noticed it, or nothing."""
    fault, csrc = FAULTS[name], folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    text = (csrc / fault.file).read_text(encoding="utf-8")
    if text.count(fault.right) != 1:
        sys.exit(f"{name}: {fault.file} no longer has exactly one {fault.right!r}")
    (csrc / fault.file).write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
    units = ("engine.cpp", "thin.cpp", "isa.cpp", "kernels.cpp")
    sources = [ROOT / "tests/cxx/isas_agree.cpp", *(csrc / unit for unit in units)]
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wno-psabi", f"-I{csrc}"]
    isa = ["-DDROPFAST_ISA=baseline", "-DDROPFAST_ISAS=X(baseline)"]
    program = folder / "isas_agree"
    subprocess.run([os.environ.get("CXX", "c++"), *flags, *isa, *sources, "-o", program, "-pthread"], check=True)
    command = [program, ROOT / "tests/data/stream_v1.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return "the golden file" if done.returncode else "" if DIGEST in done.stdout else "the digest"


def main() -> None:
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(os.cpu_count()) as pool:
        folders = [Path(work, str(i)) for i in range(len(FAULTS))]
        failures = 0
        for name, by in zip(FAULTS, pool.map(caught, FAULTS, folders), strict=True):
            print(f"  {name:37}{'caught by ' + by if by else 'not caught'}", flush=True)
            failures += bool(by) == (name == "no fault at all")
    sys.exit(f"{failures} not as it should be" if failures else 0)


if __name__ == "__main__":
    main()
