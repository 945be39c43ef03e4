"""Whether a folder holds all files of a release, and nothing else: python .github/complete.py FOLDER."""

import os
import re
import sys
import zipfile
from pathlib import Path

PROMISED = (Path(__file__).parent / "wheels.txt").read_text(encoding="utf-8").split()
PYODIDE = "py3-pyemscripten_2025_0_wasm32"  # made of Python alone; an index has no other such wheel
COMPILED = {"_native", "_jax_ffi", "cython_api"}


def identifier(wheel: Path) -> str:
    """Return what cibuildwheel calls the wheels of a Python and a platform, without the version of the platform."""
    _, _, python, abi, platforms = wheel.stem.split("-")
    platform = re.sub(r"^([a-z]+linux|macosx).*?_(x86_64|aarch64|arm64)$", r"\1_\2", platforms.split(".")[0])
    return f"{python if abi == 'none' else abi}-{platform}"


def compiled(wheel: Path) -> set[str]:
    """Return the extension modules of a wheel."""
    names = [Path(name).name for name in zipfile.ZipFile(wheel).namelist()]
    return {name.split(".")[0] for name in names if name.endswith((".so", ".pyd"))} & COMPILED


def faults(folder: Path) -> list[str]:
    """Return what is wrong."""
    wheels = {identifier(wheel): wheel for wheel in folder.glob("*.whl")}
    expected = {*PROMISED, PYODIDE}
    found = [f"{name} is missing" for name in sorted(expected - set(wheels))]
    found += [f"{wheels[name].name} was not promised" for name in sorted(set(wheels) - expected)]
    for name, wheel in sorted(wheels.items()):
        lacking = (set() if name == PYODIDE else COMPILED) - compiled(wheel)
        found += [f"{wheel.name} lacks {', '.join(sorted(lacking))}"] if lacking else []

    versions = {file.name.removesuffix(".tar.gz").split("-")[1] for file in folder.iterdir()}
    if len(versions) != 1:
        found.append(f"there is not one version, but {sorted(versions)}")
    elif os.environ.get("GITHUB_REF_TYPE") == "tag" and os.environ["GITHUB_REF_NAME"] != f"v{min(versions)}":
        found.append(f"the tag is {os.environ['GITHUB_REF_NAME']}, and dropfast/_config.py says {min(versions)}")
    others = len(list(folder.iterdir())) - len(list(folder.glob("*.whl")))
    if others != 1 or not list(folder.glob("*.tar.gz")):
        found.append("there must be one source distribution, and nothing but wheels beside it")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(faults(Path(sys.argv[1]))) or None)
