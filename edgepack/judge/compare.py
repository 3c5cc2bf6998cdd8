"""Compare two builds: what changed, or why they cannot be compared.

Timings are compared on the same device, by the same protocol; accuracy and parity on the same data; what is counted in
a file, always. Versions of runtimes and the kernel may differ: they are listed as changes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from edgepack.core.files import digest
from edgepack.core.metrics import METRICS
from edgepack.core.units import NUMBER, SHARE
from edgepack.records.build import Build, StageRecord
from edgepack.records.differences import differences, numbered
from edgepack.records.measurement import Measurement

_LISTED_SEPARATELY = ("versions", "kernel")  # parts of an environment that may differ
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of one file, before and after. `why_not` says why the two cannot be compared."""

    metric: str
    artifact: str
    before: Measurement
    after: Measurement
    why_not: str = ""

    @property
    def in_points(self) -> bool:
        """Return whether a difference says more than a ratio, as for shares and plain numbers."""
        return METRICS[self.metric].quantity in (SHARE, NUMBER)

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """Return (after / before, lowest, highest), with the bounds computed from the bounds of both sides."""
        before, after = self.before, self.after
        if self.why_not or self.in_points or before.low <= 0:
            return None
        return after.value / before.value, after.low / before.high, after.high / before.low

    @property
    def difference(self) -> float:
        return self.after.value - self.before.value

    @property
    def unchanged(self) -> bool:
        return not self.why_not and self.before.value == self.after.value

    @property
    def same_file(self) -> bool:
        return self.before.sha256 == self.after.sha256

    @property
    def clear(self) -> bool:
        """Return whether the value changed beyond both intervals."""
        return not self.why_not and (self.after.low > self.before.high or self.after.high < self.before.low)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that differs between two builds."""

    before: Build
    after: Build

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Return the change of every figure of a shipped file that both builds have."""
        return tuple(
            Change(
                metric=metric,
                artifact=artifact.label,
                before=theirs,
                after=ours,
                why_not=why_not(metric, environment(self.before, theirs), environment(self.after, ours)),
            )
            for metric in METRICS
            for artifact in self.after.shipped()
            if (ours := self.after.find(metric, artifact.label)) and (theirs := self.before.find(metric, ours.artifact))
        )

    @property
    def comparable(self) -> bool:
        return any(not change.why_not for change in self.changes)

    @property
    def settings(self) -> tuple[str, ...]:
        """Return the differences of the recipes: "stages.distill.epochs 12 -> 20"."""
        return tuple(map(str, differences(_by_name(_settled(self.before)), _by_name(_settled(self.after)))))

    @property
    def stages(self) -> tuple[tuple[StageRecord, StageRecord], ...]:
        """Return the changed results of stages, before and after; stages that only one build has are in `settings`."""
        before, after = (_numbered((each.stage, each) for each in build.ledger) for build in (self.before, self.after))
        both = ((before[name], after[name]) for name in after if name in before)
        return tuple((old, new) for old, new in both if (old.bytes, old.score) != (new.bytes, new.score))

    @property
    def versions(self) -> tuple[str, ...]:
        before, after = (each.provenance.get("versions", {}) for each in (self.before, self.after))
        return tuple(map(str, differences(before, after)))

    @property
    def files(self) -> tuple[str, ...]:
        """Return files that only one of the two has, in words."""
        labels = [{each.label for each in build.shipped()} for build in (self.before, self.after)]
        gone, new = labels[0] - labels[1], labels[1] - labels[0]
        return (
            *(f"{label} is no longer exported" for label in sorted(gone)),
            *(f"{label} is new" for label in sorted(new)),
        )


def environment(build: Build, found: Measurement) -> dict[str, Any]:
    """Return the environment of a figure; an old build identifies its data by its recipe only."""
    return {"data": digest(build.recipe.get("data"))[:16], **found.environment}


def series(metric: str, within: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an environment that must be equal for two figures of this metric to be compared."""
    kind = METRICS[metric].within
    if kind == "device":
        return {key: value for key, value in within.items() if key not in (*_LISTED_SEPARATELY, "data")}
    return {"data": within.get("data")} if kind == "data" else {}


def why_not(metric: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return why figures from these environments cannot be compared, or ""."""
    first, second = series(metric, before), series(metric, after)
    if first == second:
        return ""
    if METRICS[metric].within == "data":
        return "other test data"
    keys = [key for key in first.keys() | second.keys() if first.get(key) != second.get(key)]
    what = "another protocol" if keys == ["protocol"] else "another device"
    return f"{what}: {', '.join(map(str, differences(first, second)))}"


def _by_name(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe with lists as mappings: stages by name, numbered if a name occurs twice."""
    found = dict(recipe)
    for key in ("stages", "export"):
        found[key] = _numbered(pair for item in recipe.get(key, ()) for pair in item.items())
    return found


def _settled(build: Build) -> dict[str, Any]:
    """Return the recipe with the settings that its stages chose by measuring."""
    stages = build.recipe.get("stages", ())
    decided = [*(record.decided for record in build.ledger[1:]), *({} for _ in stages)]
    settled = [
        {name: {**settings, **chosen} if isinstance(settings, dict) else settings}
        for stage, chosen in zip(stages, decided, strict=False)
        for name, settings in stage.items()
    ]
    return {**build.recipe, "stages": settled}


def _numbered(items: Iterable[tuple[str, Item]]) -> dict[str, Item]:
    pairs = list(items)
    return dict(zip(numbered(name for name, _ in pairs), (item for _, item in pairs), strict=True))
