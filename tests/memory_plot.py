"""The pictures of `make bench-memory`, drawn from its samples: one for each limit. Needs matplotlib.

python -m tests.memory_bench --draw
"""

import itertools
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes

from tasks.memory.level import PROFILES, Level
from tasks.settings import Settings
from tests import memory_report, memory_samples
from tests.memory_report import Outcome
from tests.memory_samples import Sample

matplotlib.use("Agg")

SHADES = {"MODERATE": "#fff3c4", "HIGH": "#ffd9b0", "CRITICAL": "#ffb3b3"}
MARKS = {Level.MODERATE: "#b58900", Level.HIGH: "#cb4b16", Level.CRITICAL: "#dc322f"}
PROFILE = Settings.model_fields["memory_profile"].default


def draw(folder: Path) -> Iterator[Path]:
    """From all samples that lie there, beside them; large things in pictures of their own."""
    outcomes = sorted(memory_report.read(folder), key=lambda one: one.number > 0)
    for (large, limit_mb, contained), found in groupby(
        outcomes, lambda one: (one.number > 0, one.limit_mb, one.contained)
    ):
        outcomes = list(found)
        figure, axes = pyplot.subplots(len(outcomes), figsize=(10, 2.6 * len(outcomes)), squeeze=False)
        for one, of_one in zip(outcomes, axes[:, 0], strict=True):
            _run(of_one, one, memory_samples.read(folder / f"{one.name}.csv"))
        axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7, frameon=False)
        axes[-1, 0].set_xlabel("seconds")
        figure.tight_layout()
        path = folder / f"{'container-' if contained else ''}{limit_mb}{'-large' if large else ''}.png"
        # What is equal is drawn equal, byte for byte: no date, no version.
        figure.savefig(path, dpi=80, metadata={"Software": None})
        pyplot.close(figure)
        yield path


def _run(axes: Axes, outcome: Outcome, samples: Sequence[Sample]) -> None:
    seconds = [sample.second for sample in samples]
    _shade(axes, samples)
    names = sorted({name for sample in samples for name in sample.shares}, key=lambda name: (name != "main", name))
    axes.stackplot(
        seconds, *([sample.shares.get(name, 0) for sample in samples] for name in names), labels=names, alpha=0.8
    )
    axes.plot(seconds, [sample.used for sample in samples], color="black", linewidth=1, label="anonymous + shared")
    axes.plot(seconds, [sample.usage for sample in samples], color="grey", linewidth=0.8, linestyle=":",
              label="with files and kernel")  # fmt: skip
    _marks(axes, outcome.limit_mb)
    axes.set(xlim=(0, seconds[-1]), ylim=(0, outcome.limit_mb * 1.05), ylabel="MiB")
    what = (
        f"{outcome.what}: {outcome.files:,} files in {outcome.limit_mb} MiB: {outcome.state} in {outcome.wall_s:.0f} s"
    )
    axes.set_title(f"{what}, peak {outcome.peak_mb:.0f} MiB, {outcome.oom_kills} OOM kills", fontsize=9)


def _shade(axes: Axes, samples: Sequence[Sample]) -> None:
    """What lies behind tells the level, as the worker told it."""
    begun = [next(some) for _, some in groupby(samples, lambda sample: sample.level)]
    for one, after in itertools.pairwise([*begun, samples[-1]]):
        if one.level in SHADES:
            axes.axvspan(one.second, after.second, color=SHADES[one.level], linewidth=0)


def _marks(axes: Axes, limit_mb: int) -> None:
    """The limit, and where each level begins."""
    axes.axhline(limit_mb, color="black", linewidth=1.5)
    for level, fraction in zip(MARKS, PROFILES[PROFILE], strict=True):
        axes.axhline(limit_mb * fraction, color=MARKS[level], linewidth=0.8, linestyle="--")
        axes.text(0, limit_mb * fraction, f" {level.name}", fontsize=6, va="bottom", color=MARKS[level])
