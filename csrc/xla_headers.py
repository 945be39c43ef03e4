#!/usr/bin/env python3
"""Put XLA's headers into a folder for DROPFAST_XLA_INCLUDE: python csrc/xla_headers.py FOLDER.

They are those of the oldest JAX that the door opens to, for a handler suits the jaxlib of its headers and newer ones.
They come out of jaxlib's wheel for Linux, for they are the same everywhere, also where jaxlib has no wheels.
"""

import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

INCLUDE = "jaxlib/include/"


def main(folder: Path) -> None:
    """Download jaxlib's wheel, and unpack its headers."""
    pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = pyproject["project"]["optional-dependencies"]["jax"][0].removeprefix("jax>=")
    with tempfile.TemporaryDirectory() as scratch:
        # For a Python that every jaxlib since 2023 has wheels for; what it is does not matter to the headers.
        wanted = ["--python-version=3.12", "--platform=manylinux2014_x86_64", "--platform=manylinux_2_27_x86_64"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, *wanted, f"--dest={scratch}", f"jaxlib=={oldest}"], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(INCLUDE) and not name.endswith("/"):
                    file = folder / name.removeprefix(INCLUDE)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(archive.read(name))
    print(f"XLA's headers, as jaxlib {oldest} has them, are in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
