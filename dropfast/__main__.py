"""The command line: ``python -m dropfast info``, ``demo`` and ``bench``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dropfast._config import __version__, show_config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after ``python -m dropfast``; by default those of this process.

    Returns
    -------
    int
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m dropfast", description="Dropout for CPUs at the speed of memory.")
    parser.add_argument("--version", action="version", version=f"dropfast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("info", help="say which backend, instruction set and threads run here")
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

    if arguments.command == "info":
        show_config()
    elif arguments.command == "demo":
        _check_picture(demo, "--out", arguments.out)
        from dropfast.demo import run

        run(arguments.out, quick=arguments.quick)
    elif arguments.command == "bench":
        _check_picture(bench, "--plot", arguments.plot)
        if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
            bench.error(f"--json must be a file in a folder that exists, got {arguments.json}")
        if arguments.threads < 1:
            bench.error(f"--threads must be at least 1, got {arguments.threads}")
        from dropfast import bench as benchmark

        benchmark.run(
            json=arguments.json,
            plot=arguments.plot,
            threads=arguments.threads,
            quick=arguments.quick,
            peers=arguments.peers,
        )
    else:
        parser.print_help()
    return 0


def _check_picture(parser: argparse.ArgumentParser, option: str, path: Path) -> None:
    """Stop, before a minute has been spent, if a picture could not be saved."""
    if path.suffix != ".png" or not path.absolute().parent.is_dir():
        parser.error(f"{option} must be a .png file in a folder that exists, got {path}")


if __name__ == "__main__":
    raise SystemExit(main())
