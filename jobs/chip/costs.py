"""What CHIP's two ways to keep classes cost: output of the sweep and operations of the statistics.

Keeping all classes is exact and grows with their number; above the limits here it has to be asked for twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jobs.show import columns, size
from pipeline.errors import UsageError
from stages.chip.statistics import StatisticsConfig
from stages.chip.sums import PANEL
from stages.chip.sweep import SweepConfig

OUTPUT_LIMIT = 1e12  # bytes
STATISTICS_LIMIT = 1e15  # floating point operations


@dataclasses.dataclass(frozen=True)
class ClassCosts:
    """One way to keep classes, for a number of images."""

    mode: str  # "coverage" or "all"
    classes: int  # of an image; in coverage mode the most there can be
    row_bytes: float  # uncompressed: floats hardly compress
    images: int
    statistics_flops: float  # a multiply-add is two

    @property
    def output_bytes(self) -> float:
        return self.row_bytes * self.images

    @property
    def too_large(self) -> list[str]:
        """Which limits this passes; only keeping all classes is ever refused."""
        found = []
        if self.mode == "all" and self.output_bytes > OUTPUT_LIMIT:
            found.append(f"{size(self.output_bytes)} of output (limit {size(OUTPUT_LIMIT)})")
        if self.mode == "all" and self.statistics_flops > STATISTICS_LIMIT:
            found.append(f"{self.statistics_flops:.2g} FLOP of statistics (limit {STATISTICS_LIMIT:.0g})")
        return found


def class_costs(sweep: SweepConfig, statistics: StatisticsConfig, images: int) -> dict[str, ClassCosts]:
    """Both modes for so many images of the fit split, whichever the config asks for."""
    most = min(sweep.max_classes, statistics.classes)
    return {
        mode: ClassCosts(
            mode,
            classes,
            _row_bytes(classes, statistics.channels, sweep.gates),
            images,
            images * sum(_statistics_flops(classes, k, statistics) for k in statistics.channels),
        )
        for mode, classes in (("coverage", most), ("all", statistics.classes))
    }


def _row_bytes(classes: int, channels: Sequence[int], gates: int) -> float:
    """label, lost mass; class ids and f; for each layer a, g and the checksum."""
    return 8.0 + 8.0 * classes + sum(4.0 * k + 4.0 * gates * classes + 8.0 for k in channels)


def _statistics_flops(classes: int, channels: int, config: StatisticsConfig) -> float:
    """Of one image and layer: b, the image's products over the gates, and their spread over the classes."""
    # The Gram matrix is formed in panels of rows, each from its diagonal block on.
    entries = sum(min(PANEL, channels - i) * (channels - i) for i in range(0, channels, PANEL))
    products = entries if config.shared_gates else 2.0 * config.gates * entries
    return 2.0 * config.gates * classes * channels + products + 2.0 * classes * entries


def class_lines(costs: dict[str, ClassCosts], chosen: str) -> list[str]:
    """The table of both modes, and whether the chosen one would be refused."""
    rows = [
        (
            f"{c.mode}{' (chosen)' if c.mode == chosen else ''}",
            f"{'<= ' if c.mode == 'coverage' else ''}{c.classes:,}",
            size(c.row_bytes),
            size(c.output_bytes),
            f"{c.statistics_flops:.2g}",
        )
        for c in costs.values()
    ]
    lines = columns(("classes", "of an image", "a row", "output", "FLOP of statistics"), rows)
    if over := costs[chosen].too_large:
        lines += ["", f"classes: {chosen} takes {' and '.join(over)}: 'raylens chip' refuses that without --yes"]
    return lines


def refuse_too_large(costs: ClassCosts) -> None:
    """UsageError when this way of keeping classes takes more than anyone wants by accident."""
    if over := costs.too_large:
        raise UsageError(
            f"keeping all {costs.classes:,} classes of {costs.images:,} images takes {' and '.join(over)}",
            where="sweep.classes",
            cure="set sweep.classes=coverage, which keeps those with a share, or give --yes if this is wanted",
        )
