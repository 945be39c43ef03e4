"""The demo: its question is whether dropout should drop the same units for the whole mini-batch."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path


def run(out: Path, *, quick: bool = False) -> bool:
    """Answer the question on this machine, with an example, timings, training, gradient noise and thinned networks.

    It ends with the answer in words, and a picture. All but the timings is the same in every run on one machine: the
    seeds are fixed.

    Parameters
    ----------
    out : Path
        Where to write the picture, a PNG.
    quick : bool, default False
        Fewer seeds and masks, for a look within seconds.

    Returns
    -------
    bool
        Whether the picture could be written.

    Raises
    ------
    SystemExit
        If a package that only the demo needs is not installed.
    """
    missing = [name for name in ("rich", "matplotlib", "sklearn") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f'the demo needs {" and ".join(missing)}, not installed here: pip install "dropfast[demo]"')

    # Only now, for they import those packages.
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    from dropfast import _backend
    from dropfast._report import Report
    from dropfast.demo import answer, example, picture, speed, thinned, training, variance

    report = Report()
    began = time.perf_counter()
    # One thread for everything: comparable timings, and sums in the same order in every run.
    with threadpool_limits(1), _backend.on_threads(1):
        example.show(report)
        turns = speed.take_turns(report, rounds=31 if quick else 101)
        speed.show(report, turns)
        trained = training.measure(report, seeds=4 if quick else 16, epochs=32 if quick else 128)
        training.show(report, trained)
        noise = variance.measure(report, pairs=20 if quick else 200)
        variance.show(report, noise)
        race = thinned.train(report, seeds=2 if quick else 4, epochs=8 if quick else 64)
        gains = thinned.time_steps(report, rounds=2 if quick else 5)
        thinned.show(report, race, gains)
    report.heading("The answer")
    report.text(answer.text(turns, trained, noise))
    report.line()
    report.text(answer.exchange(race, gains))
    report.line()
    written = report.save("The picture is", out, lambda path: picture.draw(path, trained, noise, race, gains))
    report.line(f"All this took {time.perf_counter() - began:.0f} s.")
    return written
