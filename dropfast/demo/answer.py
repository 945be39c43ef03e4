"""The answer, in words, with the numbers of this run."""

from __future__ import annotations

from dropfast.bench.tables import figure
from dropfast.demo.speed import Turn
from dropfast.demo.thinned import WIDTH, WIDTHS, Gains, Race
from dropfast.demo.training import BATCH, RATE, Trained
from dropfast.demo.variance import SIZES_OF_BATCH, Noise

EARLY = 3  # place among the epochs that were measured


def text(turns: list[Turn], trained: Trained, noise: Noise) -> str:
    """Return the answer as a paragraph."""
    one, *_, per_sample = noise.measured("per-sample")[0]
    shared = noise.measured("shared")[0][-1]
    v, c, largest = noise.v.mean(), noise.c.mean(), SIZES_OF_BATCH[-1]
    early, late = ({m: f"{a[:, i].mean():.1f}%" for m, a in trained.accuracy.items()} for i in (EARLY, -1))
    *_, one_by_one, _, last = turns
    # Each against the copy that it took turns with: the two were not timed side by side.
    gain = last.share / one_by_one.share
    return f"""
        As a rule, others for each sample. The mean gradient is the same either way, but not its noise: with a mask for
        each sample, the variance that the masks give the gradient of a batch of M falls as 1/M, here from {one:.3g} at
        M = 1 to {per_sample:.2g} at M = {largest}; with a shared mask it levels off at C = {c:.2g}, is
        {shared / per_sample:.1f} times as large at M = {largest}, and at most doubled up to M = {1 + v / c:.0f}.
        In training with batches of {BATCH}, shared masks reached {early["shared"]} test accuracy after
        {trained.epochs[EARLY]} epochs, where per-sample masks reached {early["per-sample"]}; after {trained.epochs[-1]}
        epochs it was {late["shared"]} against {late["per-sample"]} ({late["no dropout"]} without dropout),
        {ending(trained)}. In dropout's own time, sharing gains a factor of {gain:.1f} at
        {"x".join(map(str, last.copy.case.shape))}."""


def ending(trained: Trained) -> str:
    """Return where shared masks end, beside per-sample masks, as far as this run can tell."""
    mean, error = trained.difference("shared", "per-sample")
    if abs(mean) < 2 * error:
        return "too close to tell apart"
    return f"{abs(mean):.2f} points {'ahead' if mean > 0 else 'behind'}, standard error {error:.2f}"


def exchange(race: Race, gains: Gains) -> str:
    """Return what a shared mask gives in return, and whether that is worth it, as a paragraph."""
    widest, narrowest = (figure(gains[width, RATE]) for width in (WIDTHS[-1], WIDTHS[0]))
    low = figure(gains[WIDTHS[-1], 0.2])
    return f"""
        What a shared mask drops need not be computed: a step at rate {RATE} is then {widest} times as fast as with
        per-sample masks where hidden layers have {WIDTHS[-1]} units, and {narrowest} times with {WIDTHS[0]}; at rate
        0.2 it is {low} times as fast with {WIDTHS[-1]}. {verdict(race)} Share masks where batches are small, where all
        samples must see the same thinned network, or where steps become faster by more than their number grows: with
        wide layers and high rates, in networks that leave out what is dropped."""


def verdict(race: Race) -> str:
    """Return who was first at the highest accuracy that all had, and at the lower ones."""
    targets = race.common()
    if not targets:
        return "This training was too short to say whether that outweighs the noise."
    *lower, highest = targets
    (fewer, _), (faster, error) = race.ratios(highest)
    said = f"""To {highest}% with {WIDTH} units, thinned training took {figure(1 / fewer)} times as many epochs, and the
        processor's time says {figure(faster)} times as fast ({figure(faster / error)} to {figure(faster * error)}): """
    if faster / error**2 <= 1 <= faster * error**2:
        said += "too close to tell apart"
    else:
        said += f"{'sharing and thinning' if faster > 1 else 'others for each sample'} won here"
    if lower:
        factors = ", ".join(figure(race.ratios(target)[1][0]) for target in lower)
        said += f" (to {', '.join(map(str, lower))}%: {factors} times as fast)"
    return f"{said}."
