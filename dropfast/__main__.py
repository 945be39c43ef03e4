"""The command line: ``dropfast info``, ``demo`` and ``bench``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dropfast import _backend
from dropfast._config import __version__, show_config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after ``dropfast``; by default those of this process.

    Returns
    -------
    int
        The exit status: 0, 1 if a file could not be written in the end, or 130 after Ctrl-C.

    Raises
    ------
    SystemExit
        With 0 for ``--help`` and ``--version``, 2 for wrong words or a wrong environment, 1 for a missing package.
    """
    parser = argparse.ArgumentParser(prog="dropfast", description="Dropout for CPUs at the speed of memory.")
    parser.add_argument("--version", action="version", version=f"dropfast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("info", help="say which backend, instruction set and threads run here, and why")
    demo = commands.add_parser(
        "demo", help="show both kinds of mask: an example, speed, training on real data, gradient noise"
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("dropfast-demo.png"),
        metavar="PATH.png",
        help="the picture (default: %(default)s)",
    )
    demo.add_argument("--quick", action="store_true", help="fewer seeds and masks: seconds instead of a minute")
    bench = commands.add_parser("bench", help="measure dropfast, a plain copy and the peers that are installed")
    bench.add_argument(
        "--json", type=Path, metavar="PATH", help="where to write all measurements, and what the machine is"
    )
    bench.add_argument(
        "--plot",
        type=Path,
        default=Path("dropfast-bench.png"),
        metavar="PATH.png",
        help="the picture (default: %(default)s)",
    )
    bench.add_argument("--threads", type=int, default=1, metavar="N", help="of each contender (default: %(default)s)")
    bench.add_argument(
        "--quick", action="store_true", help="fewer sizes, rates and rounds, nothing larger than the cache"
    )
    bench.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=True, help="also PyTorch, TensorFlow and so on"
    )
    arguments = parser.parse_args(argv)

    if arguments.command is None:
        parser.print_help()
        return 0
    if _backend.refused is not None:
        parser.exit(2, f"dropfast: {_backend.refused}\n")
    try:
        if arguments.command == "info":
            show_config()
            return 0
        return _demo(demo, arguments) if arguments.command == "demo" else _bench(bench, arguments)
    except KeyboardInterrupt:
        print("dropfast: interrupted", file=sys.stderr)
        return 130  # what a shell has for a process that SIGINT has ended


def _demo(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    _check_picture(parser, "--out", arguments.out)
    from dropfast.demo import run

    return 0 if run(arguments.out, quick=arguments.quick) else 1


def _bench(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if arguments.threads < 1:
        parser.error(f"--threads must be at least 1, got {arguments.threads}")
    _check_picture(parser, "--plot", arguments.plot)
    if arguments.json is not None:
        _check_file(parser, "--json", arguments.json)
    from dropfast.bench import run

    written = run(
        json=arguments.json,
        plot=arguments.plot,
        threads=arguments.threads,
        quick=arguments.quick,
        peers=arguments.peers,
    )
    return 0 if written else 1


def _check_picture(parser: argparse.ArgumentParser, option: str, path: Path) -> None:
    if path.suffix.lower() != ".png":
        parser.error(f"{option} must end in .png, got {path}")
    _check_file(parser, option, path)


def _check_file(parser: argparse.ArgumentParser, option: str, path: Path) -> None:
    """Stop, before a minute has been spent, if a file could not be written. Nothing is left behind, or changed."""
    target = os.path.realpath(path)  # so that a link to a file that is yet to come stays
    was_there = os.path.exists(target)
    try:
        open(target, "ab").close()
        if not was_there:
            os.unlink(target)
    except OSError as error:
        parser.error(f"{option} must be a file that can be written, got {path}: {error.strerror}")


if __name__ == "__main__":
    raise SystemExit(main())
