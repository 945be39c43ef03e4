"""Stream v1 in plain Python: written to be read, and slow.

This is the oracle of the tests. It follows docs/stream.md line by line and shares nothing with the library,
so that an error would have to be made twice, in two ways, to go unseen.

Run as a script (`python tests/reference.py`) it writes the golden file tests/data/stream_v1.json anew. Stream
v1 is frozen: a run must give the same file, byte for byte; a difference means that this reference is broken.
"""

import json
from functools import cache
from pathlib import Path

GOLDEN = Path(__file__).parent / "data" / "stream_v1.json"

MASK32 = 2**32 - 1

# Philox4x32 as in Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11 (2011).
# The multipliers are the authors' choice, found by search for good mixing.
M0, M1 = 0xD2511F53, 0xCD9E8D57
# What the key grows by between rounds (same paper): fraction bits of the golden ratio and of sqrt(3).
W0, W1 = 0x9E3779B9, 0xBB67AE85


def philox4x32_10(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox on four 32-bit counter words and two 32-bit key words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2  # 64-bit products
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & MASK32
        k0, k1 = (k0 + W0) & MASK32, (k1 + W1) & MASK32
    return c0, c1, c2, c3


@cache  # neighbouring elements share their planes; without this a test would take minutes
def plane_word(key: int, draw: int, block: int, plane: int) -> int:
    """Plane `plane` of a block as one 128-bit integer: bit t belongs to the block's element t."""
    counter = (block & MASK32, block >> 32, draw, plane)
    w0, w1, w2, w3 = philox4x32_10(counter, (key & MASK32, key >> 32))
    return w0 | w1 << 32 | w2 << 64 | w3 << 96


def uniform(key: int, draw: int, i: int) -> int:
    """The 32-bit uniform of element i; plane 0 gives its most significant bit."""
    u = 0
    for plane in range(32):
        u = u << 1 | plane_word(key, draw, i >> 7, plane) >> (i & 127) & 1
    return u


def threshold(rate: float) -> int:
    """How many of the 2**32 values of the uniform mean "dropped"."""
    return round(rate * 2**32)  # the product is exact, and Python rounds ties to even


def scale(rate: float) -> float:
    """What kept elements are multiplied by, in float64; narrower types round this value once more."""
    kept = 2**32 - threshold(rate)
    return 2**32 / kept if kept else 0.0


def keep(key: int, draw: int, i: int, rate: float) -> bool:
    """Whether element i is kept."""
    return uniform(key, draw, i) >= threshold(rate)


def packed(key: int, draw: int, start: int, n: int, rate: float) -> bytes:
    """The keep bits of n elements: eight a byte, the first element in the lowest bit, padded with 0."""
    bits = sum(keep(key, draw, start + j, rate) << j for j in range(n))
    return bits.to_bytes((n + 7) // 8, "little")


RATES = (0.0, 2**-33, 2**-32, 0.1, 0.25, 0.3, 0.5, 0.9, 1 - 2**-32, 1.0)
STREAMS = [(key, draw) for key in (0, 0x0123456789ABCDEF, 2**64 - 1) for draw in (0, 7, 2**32 - 1)]
# The edges of blocks, of 31- and 32-bit indices and of 32-bit block numbers (index 2**39), and the very end.
STARTS = (0, 1, 127, 128, 2**31 - 64, 2**32 - 64, 2**39 - 64, 2**40 + 5, 2**63 - 256)
# Elements of key 0, draw 0 whose uniform lies right at a threshold (found by search), with rates that tell
# U < T from U <= T and need every plane: index -> rates.
AT_THRESHOLD = {
    8046175150: (2**-33, 2**-32),  # U = 0
    343460240: (1 - 2**-32, 1.0),  # U = 2**32 - 1
    1514460400: (0.1,),  # U = T(0.1) - 1
    1283727731: (0.1,),  # U = T(0.1)
    14907504393: (0.5 - 2**-32, 0.5),  # U = 2**31 - 1
    816890796: (0.5, 0.5 + 2**-32),  # U = 2**31
}


def golden_text() -> str:
    """The golden file: thresholds and scales, uniforms, and masks; one case a line, floats as exact hex."""
    rates = (*RATES, 3 * 2**-33, 1 - 2**-33)  # the last two are ties that round up, to T = 2 and 2**32
    windows = [  # every start meets every rate, and every stream every start
        (*STREAMS[(r + s) % len(STREAMS)], start, rate, 256 if start == 2**63 - 256 else 299 + r)
        for s, start in enumerate(STARTS)
        for r, rate in enumerate(RATES)
    ] + [(0, 0, i - 150, rate, 300) for i, near in AT_THRESHOLD.items() for rate in near]
    sections = {
        "rates": [{"rate": r.hex(), "threshold": threshold(r), "scale": scale(r).hex()} for r in rates],
        "uniforms": [
            {"key": k, "draw": d, "start": s, "u": [f"{uniform(k, d, s + j):08x}" for j in range(8)]}
            for (k, d), s in zip(STREAMS, STARTS, strict=True)
        ],
        "masks": [
            {"key": k, "draw": d, "start": s, "rate": r.hex(), "n": n, "packed": packed(k, d, s, n, r).hex()}
            for k, d, s, r, n in windows
        ],
    }
    texts = [f'"{name}": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]" for name, rows in sections.items()]
    return '{\n"stream": "v1",\n' + ",\n".join(texts) + "\n}\n"


if __name__ == "__main__":
    GOLDEN.write_text(golden_text(), encoding="utf-8", newline="\n")
