"""Define the baseline of relative budgets: what an earlier build measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgepack.core.metrics import METRICS
from edgepack.judge.compare import series
from edgepack.judge.history import HistoryEntry, key_of, name_of_key, taken
from edgepack.records.differences import differences
from edgepack.records.verdict import Base, NoBase


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What relative budgets are compared with: the first comparable entry of `lines`, newest first.

    A `named` baseline must be comparable; a history without a comparable entry begins a new series.
    """

    lines: tuple[HistoryEntry, ...]
    named: str = ""
    unfit: str = ""  # why nothing in it can be compared
    partial: str = ""  # why a missing entry does not mean that a series begins
    damaged: str = ""  # number of unreadable lines in the history, in words

    def find(self, metric: str, artifact: str, sha256: str, environment: Mapping[str, Any]) -> Base | NoBase:
        """Return the baseline's value from the newest entry of the same series, or why there is none."""
        if self.unfit:
            return NoBase(reason=self.unfit)
        known = [(line, figure) for line in self.lines if (figure := line.find(metric, artifact))]
        wanted = key_of(metric, environment)
        for line, figure in known:
            if figure.series == wanted:
                # An unchanged file may ship with larger other files, so only for timings is any difference noise.
                same = METRICS[metric].within == "device" and figure.taken == taken(sha256, environment)
                text = f"{line.description}{self.damaged and f' ({self.damaged})'}"
                return Base(value=figure.value, low=figure.low, high=figure.high, told=text, same=same)
        if self.named:
            return NoBase(reason=self._why_not(metric, artifact, known[0][0] if known else None, environment))
        reason = "; ".join(filter(None, (self.partial or _beginning(metric, bool(known)), self.damaged)))
        return NoBase(reason=reason, beginning=not self.partial)

    def _why_not(self, metric: str, artifact: str, line: HistoryEntry | None, environment: Mapping[str, Any]) -> str:
        if line is None:
            return f"{self.named} has no {metric} of {artifact}"
        if METRICS[metric].within == "data":
            return f"{self.named} was measured on other test data"
        there, here = (series(metric, name_of_key(each)) for each in (line.where, environment))
        reason = ", ".join(map(str, differences(there, here))) or "its processor has other features"
        return f"{self.named} was measured on another device or by another protocol: {reason}"


def _beginning(metric: str, elsewhere: bool) -> str:
    if not elsewhere:
        return "no earlier build of this recipe and device passed: there is no baseline yet"
    what = "on this data" if METRICS[metric].within == "data" else "on exactly this device and protocol"
    return f"no earlier build passed {what}: a new series begins"
