"""The drawings of report.html: SVG of numbers alone, so that nothing in it needs escaping.

Every drawing is 100 units wide and is stretched to the place it gets (`preserveAspectRatio="none"`), with strokes that
keep their width: it fits a phone and a printed page without a script. Text stands beside a drawing, never in it.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

_BINS = 96  # of a distribution
_SPARE = 0.04  # margin at both ends, as a share of a scale
_LIMIT = 75.0  # position of the limit in a gauge


@dataclass(frozen=True)
class Scale:
    """Maps values to per cent of the width. `log` needs values above 0."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """
        >>> Scale(1, 100, log=True).at(10), Scale(0, 4).at(9), Scale(3, 3).at(3)
        (50.0, 100.0, 50.0)
        """
        low, high = self._along(self.low), self._along(self.high)
        if high <= low:
            return 50.0
        return min(100.0, max(0.0, (self._along(value) - low) / (high - low) * 100))

    def _along(self, value: float) -> float:
        if not self.log:
            return value
        return math.log10(value) if value > 0 else -math.inf

    def ticks(self, most: int = 5) -> tuple[float, ...]:
        """Return round values within the scale, at most `most`: powers of ten times 1, 2 or 5.

        >>> Scale(0.04, 3, log=True).ticks(), Scale(0.95, 1).ticks()
        ((0.1, 0.3, 1.0, 3.0), (0.96, 0.98, 1.0))
        """
        if self.high <= self.low:
            return (self.low,)
        if self.log:
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = tuple(_decades(self.low, self.high, steps))
                if 2 <= len(found) <= most:
                    return found
            if len(found) > most:
                return found[:: math.ceil(len(found) / most)]
        return tuple(_round_steps(self.low, self.high, most))


def scale(values: Iterable[float], *, log: bool = False) -> Scale:
    """Return a scale that fits all values, with a margin at both ends."""
    known = [value for value in values if value > 0 or not log]
    low, high = min(known, default=1.0), max(known, default=1.0)
    if log:
        room = (high / low) ** _SPARE
        return Scale(low / room, high * room, log=True)
    room = (high - low) * _SPARE
    return Scale(low - room, high + room)


def _decades(low: float, high: float, steps: Sequence[int]) -> Iterator[float]:
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        yield from (value for step in steps if low <= (value := float(f"{step}e{power}")) <= high)


def _round_steps(low: float, high: float, most: int) -> Iterator[float]:
    rough = (high - low) / most
    power = math.floor(math.log10(rough))
    step = next(size for size in (1, 2, 5, 10) if size * 10.0**power >= rough) * 10.0**power
    first = math.ceil(low / step - 1e-9)
    yield from (round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1))


def trail(values: Sequence[float | None], along: Scale) -> Iterator["Markup"]:
    """Yield one drawing per table row: a dot at each value, joined to the next row's dot across the border."""
    spots = [None, *(None if value is None else along.at(value) for value in values), None]
    for before, here, after in zip(spots, spots[1:], spots[2:], strict=False):
        yield _svg("trail", "" if here is None else _joined(before, here, after))


def _joined(before: float | None, here: float, after: float | None) -> str:
    path = f"M{here:.2f} 50"
    if before is not None:
        path = f"M{(before + here) / 2:.2f} 0L{here:.2f} 50"
    if after is not None:
        path += f"L{(here + after) / 2:.2f} 100"
    return f'<path class="line" d="{path}"/>{_dot(here, 50)}'


def gauge(used: float, low: float, high: float, tone: str) -> "Markup":
    """Draw how much of a limit is used: 1 is all of it. `low` and `high` are the interval, `tone` the CSS class."""
    ends = [min(100.0, max(0.0, share * _LIMIT)) for share in (used, low, high)]
    whiskers = f'<path class="whisker" d="M{ends[1]:.2f} 50H{ends[2]:.2f}"/>' if ends[2] - ends[1] > 0.5 else ""
    return _svg(
        "gauge",
        f'<path class="track" d="M0 50H100"/><path class="bar {tone}" d="M0 50H{max(ends[0], 0.5):.2f}"/>'
        f'{whiskers}<path class="limit" d="M{_LIMIT} 0V100"/>',
    )


def bar(share: float) -> "Markup":
    """Draw a plain bar, as long as this share of the width."""
    return _svg("share", f'<path class="bar" d="M0 50H{max(0.3, min(1.0, share) * 100):.2f}"/>')


def distribution(
    samples: Sequence[float],
    processes: Sequence[float],
    interval: tuple[float, float, float],
    limit: float | None,
    along: Scale,
) -> "Markup":
    """Draw the samples as a silhouette; below it a tick for each process; across both the median with its interval."""
    value, low, high = (along.at(each) for each in interval)
    width = max(0.4, high - low)
    parts = [f'<path class="grid" d="{"".join(f"M{along.at(tick):.2f} 0V100" for tick in along.ticks())}"/>']
    parts += [f'<rect class="interval" x="{(low + high - width) / 2:.2f}" y="0" width="{width:.2f}" height="100"/>']
    parts += [f'<path class="shape" d="{_silhouette(samples, along)}"/>'] if samples else []
    parts.append('<path class="track" d="M0 78H100"/>')
    parts += [f'<path class="process" d="M{along.at(each):.2f} 82V100"/>' for each in processes]
    parts.append(f'<path class="median" d="M{value:.2f} 0V78"/>')
    if limit is not None and along.low <= limit <= along.high:
        parts.append(f'<path class="limit" d="M{along.at(limit):.2f} 0V100"/>')
    return _svg("distribution", "".join(parts))


def _silhouette(samples: Sequence[float], along: Scale) -> str:
    ordered = sorted(samples)
    edges = [bisect_left(ordered, 100 * n / _BINS, key=along.at) for n in range(_BINS)] + [len(ordered)]
    counts = [above - below for below, above in pairwise(edges)]
    tallest = max(counts)
    steps = (f"V{78 - 74 * count / tallest:.1f}H{100 * (n + 1) / _BINS:.2f}" for n, count in enumerate(counts))
    return f"M0 78{''.join(steps)}V78Z"


def curves(
    loss: Sequence[float | None], validation_loss: Sequence[float | None], score: Sequence[float | None], *, kept: int
) -> "Markup":
    """Draw three curves over the epochs, each in per cent of its own range, and a line at the epoch that was kept."""
    step = 100 / max(1, len(score) - 1)
    lines = (("loss", loss), ("validation", validation_loss), ("score", score))
    parts = [f'<path class="grid" d="M{kept * step:.2f} 0V100"/>']
    parts += [f'<path class="{name}" d="{_polyline(values, step)}"/>' for name, values in lines]
    if (height := score[kept]) is not None:
        parts.append(_dot(kept * step, 100 - height))
    return _svg("curves", "".join(parts))


def _polyline(values: Sequence[float | None], step: float) -> str:
    """
    >>> _polyline([None, 0.0, 50.0, None, 100.0], 25)
    'M25.00 100.0L50.00 50.0M100.00 0.0'
    """
    path, pen = "", "M"
    for place, value in enumerate(values):
        if value is not None:
            path += f"{pen}{place * step:.2f} {100 - value:.1f}"
        pen = "M" if value is None else "L"
    return path


def _dot(x: float, y: float) -> str:
    return f'<path class="dot" d="M{x:.2f} {y:.4g}h.01"/>'  # a line of zero length with round ends is never stretched


def _svg(kind: str, inside: str) -> "Markup":
    from markupsafe import Markup

    return Markup(  # noqa: S704 - numbers and fixed words only
        f'<svg class="{kind}" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{inside}</svg>'
    )
