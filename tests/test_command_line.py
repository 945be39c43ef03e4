"""The promises of the command line: help is always there, what must fail fails at once, and Ctrl-C ends it in order."""

import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from processes import interrupt_module, run_file, run_module, run_python

from dropfast import _backend

SCRIPT = "import sys\nfrom dropfast.__main__ import main\nsys.exit(main())\n"  # what pip puts into bin/dropfast

# Whichever there is, but asked for: a twin that was not has a word of its own to say.
ASKED = {"DROPFAST_BACKEND": "native" if _backend.native else "numpy"}

Command = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(params=["module", "script"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    if request.param == "module":
        return lambda *args, env: run_module("dropfast", *args, env=env)
    script = tmp_path / "bin" / "dropfast"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    return lambda *args, env: run_file(script, *args, env=env)


def said(done: "CompletedProcess[str]") -> list[str]:
    """Return the lines on standard error, without that of Matplotlib where it is new."""
    return [line for line in done.stderr.splitlines() if not line.startswith("Matplotlib is building the font cache")]


# ---- a bad environment ---------------------------------------------------------------------------

BAD = {
    "DROPFAST_ISA": {"DROPFAST_BACKEND": "numpy", "DROPFAST_ISA": "sse9"},
    "DROPFAST_BACKEND": {"DROPFAST_BACKEND": "cuda"},
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("words", ["--help", "--version", "demo --help", "bench --help", ""])
def test_help_in_a_bad_environment(command: Command, words: str, bad: str) -> None:
    done = command(*words.split(), env=BAD[bad])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dropfast " if words == "--version" else "usage: dropfast")


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("words", ["info", "demo", "bench"])
def test_a_bad_environment_is_one_line(command: Command, words: str, bad: str) -> None:
    done = command(words, env=BAD[bad])
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"dropfast: {bad} must be ")
    assert line.endswith(f" got {BAD[bad][bad]!r}")


FIRST_CALLS = {
    "apply": "dropfast.Mask(9, key=0).apply(np.ones(9))",
    "keep": "dropfast.Mask(9, key=0).keep()",
    "compress": "dropfast.Mask(9, key=0).compress(np.ones(9))",
    "compress-empty": "dropfast.Mask(0, key=0).compress(np.ones(0))",  # which looks at no bits
}


@pytest.mark.parametrize("call", FIRST_CALLS.values(), ids=FIRST_CALLS)
def test_another_program_of_that_name_has_the_error_at_first_use(tmp_path: Path, call: str) -> None:
    program = tmp_path / "dropfast"
    program.write_text(f"import numpy as np\nimport dropfast\nprint('imported')\n{call}\n")
    done = run_file(program, env=BAD["DROPFAST_BACKEND"])
    assert done.returncode == 1
    assert done.stdout == "imported\n"
    assert done.stderr.splitlines()[-1].startswith("ValueError: DROPFAST_BACKEND must be one of")


def test_another_module_has_the_error_at_import(tmp_path: Path) -> None:
    """Though Python calls the program '-m' then, just as it does for dropfast's own."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("import dropfast\n")
    (package / "__main__.py").write_text("print('ran')\n")
    done = run_module("package", "dropfast", env={"PYTHONPATH": str(tmp_path), **BAD["DROPFAST_BACKEND"]})
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("ValueError: DROPFAST_BACKEND must be one of")


# ---- Ctrl-C --------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
@pytest.mark.parametrize(
    ("args", "after"),
    [(["demo"], "Training:"), (["demo"], "Gradient noise:"), (["bench", "--no-peers"], "rate 0.5")],
    ids=["demo-training", "demo-noise", "bench"],
)
def test_ctrl_c_ends_a_command(tmp_path: Path, args: list[str], after: str) -> None:
    picture = tmp_path / "picture.png"
    option = "--out" if args == ["demo"] else "--plot"
    done = interrupt_module("dropfast", *args, option, str(picture), after=after, env=ASKED)
    assert done.returncode == 130
    assert said(done) == ["dropfast: interrupted"]
    assert not picture.exists()


# ---- files ---------------------------------------------------------------------------------------

OPTIONS = {"demo --out": "png", "bench --plot": "png", "bench --json": "json"}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("place", ["missing", "folder", "link", *(["proc"] if Path("/proc/self").exists() else [])])
def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path, option: str, place: str) -> None:
    suffix = OPTIONS[option]
    path = tmp_path / f"x.{suffix}"
    if place == "missing":
        path, reason = tmp_path / "missing" / f"x.{suffix}", "No such file or directory"
    elif place == "folder":
        path.mkdir()
        reason = "Permission denied" if sys.platform == "win32" else "Is a directory"
    elif place == "link":
        path.symlink_to(tmp_path / "missing" / "x")
        reason = "No such file or directory"
    else:
        path, reason = Path(f"/proc/x.{suffix}"), "No such file or directory"
    before = sorted(tmp_path.iterdir())
    done = run_module("dropfast", *option.split(), str(path))
    assert done.returncode == 2
    assert done.stdout == ""
    name = option.split()[1]
    assert done.stderr.splitlines()[-1].endswith(f"{name} must be a file that can be written, got {path}: {reason}")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("what", ["new", "old", "link"])
def test_looking_whether_a_file_can_be_written_leaves_no_trace(tmp_path: Path, what: str) -> None:
    """All but the last option are in order: the words are refused after the look at the picture."""
    picture, target = tmp_path / "x.PNG", tmp_path / "target"
    if what == "old":
        picture.write_text("as it was")
    elif what == "link":
        picture.symlink_to(target)
    done = run_module("dropfast", "bench", "--plot", str(picture), "--json", str(tmp_path / "missing" / "x.json"))
    assert done.returncode == 2
    assert "--json must be" in done.stderr
    assert picture.is_symlink() == (what == "link")
    assert not target.exists()
    if what == "old":
        assert picture.read_text() == "as it was"
    else:
        assert not picture.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["demo", "--out", "x.pdf"], "--out must end in .png, got x.pdf"),
        (["bench", "--plot", "x"], "--plot must end in .png, got x"),
        (["bench", "--threads", "0"], "--threads must be at least 1, got 0"),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else "",
)
def test_words_that_are_refused_at_once(args: list[str], message: str) -> None:
    done = run_module("dropfast", *args)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(message)


@pytest.mark.parametrize(("words", "package"), [("demo", "sklearn"), ("bench", "matplotlib")], ids=["demo", "bench"])
def test_a_package_that_is_missing_is_named_at_once(words: str, package: str) -> None:
    code = f"import sys\nsys.modules[{package!r}] = None\nfrom dropfast.__main__ import main\nmain([{words!r}])"
    done = run_python(code, env=ASKED)
    assert done.returncode == 1
    assert done.stdout == ""
    name = {"demo": "the demo", "bench": "the benchmark"}[words]
    assert done.stderr == f'{name} needs {package}, not installed here: pip install "dropfast[{words}]"\n'


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full, whatever is written to it")


@FULL
def test_the_answer_of_the_demo_is_there_whatever_becomes_of_the_picture(tmp_path: Path) -> None:
    picture = tmp_path / "x.png"
    picture.symlink_to("/dev/full")
    done = run_module("dropfast", "demo", "--quick", "--out", str(picture), env=ASKED)
    assert done.returncode == 1
    assert "As a rule, others for each sample." in done.stdout
    (line,) = said(done)
    assert line == f"dropfast: {picture} could not be written: [Errno 28] No space left on device"


@FULL
def test_each_file_of_the_benchmark_is_there_whatever_becomes_of_the_other(tmp_path: Path) -> None:
    picture, measurements = tmp_path / "x.PNG", tmp_path / "x.json"
    measurements.symlink_to("/dev/full")
    files = "--plot", str(picture), "--json", str(measurements)
    done = run_module("dropfast", "bench", "--quick", "--no-peers", *files, env=ASKED)
    assert done.returncode == 1
    (line,) = said(done)
    assert line == f"dropfast: {measurements} could not be written: [Errno 28] No space left on device"
    assert picture.read_bytes().startswith(b"\x89PNG")
