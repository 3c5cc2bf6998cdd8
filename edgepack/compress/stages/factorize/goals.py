"""Which layers get split, in which scheme and at which rank: at an energy, at a rank, or for a target."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from edgepack.compress.stages.factorize.low_rank import Curve, SplitScheme, needed
from edgepack.compress.stages.factorize.sites import PAYS, Site, Survey
from edgepack.compress.targets import NOUNS, Metric, Target
from edgepack.core.errors import StageError
from edgepack.core.units import SHARE
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import macs, parameters, stored_bytes
from edgepack.models.structure.dependency_groups import nearest

_FINEST, _HALVINGS = 12.0, 40  # bisection looks for n in an energy of 1 - 10 ** -n
_NAMES = 8  # names listed in an error

IN: dict[SplitScheme, str] = {"channel": "", "spatial": " in space"}
Curves = Mapping[str, tuple[Curve, ...]]


@dataclass(frozen=True, kw_only=True)
class Decision:
    splits: dict[str, tuple[Curve, int]]
    whole: dict[str, str]  # why a layer is not split
    remarks: dict[str, str] = field(default_factory=dict)  # further notes on a split
    heading: tuple[str, ...] = ()


class Goal(Protocol):
    """Chooses splits. `wanted` must be measured up to `upto` of break-even; `known` splits are certain before that."""

    survey: Survey
    upto: float
    wanted: dict[str, tuple[SplitScheme, ...]]
    known: dict[str, tuple[SplitScheme, int]]

    def decide(self, curves: Curves) -> Decision: ...


class AtRank:
    """Split every layer that saves weights at this rank."""

    upto = 1.0

    def __init__(self, survey: Survey, asked: int, block: int) -> None:
        self.survey, self.asked, self.block = survey, asked, block
        ranks = {name: _blocks(site, site.schemes[0], asked, block) for name, site in survey.sites.items()}
        saves = {name for name, rank in ranks.items() if rank < self._break_even(name)}
        self._refuse_useless(saves)
        self.known = {name: (survey.sites[name].schemes[0], rank) for name, rank in ranks.items() if name in saves}
        self.wanted: dict[str, tuple[SplitScheme, ...]] = {name: (scheme,) for name, (scheme, _) in self.known.items()}
        self.whole = {name: self._why(name) for name in ranks if name not in saves}

    def decide(self, curves: Curves) -> Decision:
        splits = {name: (curves[name][0], rank) for name, (_, rank) in self.known.items() if curves[name]}
        return Decision(splits=splits, whole={**_silent(curves), **self.whole}, remarks=dict(self._remarks(splits)))

    def _break_even(self, name: str) -> float:
        site = self.survey.sites[name]
        return site.break_even(site.schemes[0])

    def _refuse_useless(self, saves: set[str]) -> None:
        """Raises StageError where a layer named literally would save nothing, or no layer saves any weights."""
        useless = {name: self._break_even(name) for name in self.survey.sites if name not in saves}
        meant = {name: limit for name, limit in useless.items() if name in self.survey.named} if saves else useless
        if meant:
            limits = sorted(meant.items(), key=lambda each: -each[1])
            shown = ", ".join(f"{limit:.4g} ({name})" for name, limit in limits[:_NAMES])
            more = f" and lower for {len(limits) - _NAMES} more" if len(limits) > _NAMES else ""
            raise StageError(
                f"at rank {self._rank_text()} a split saves no weights: break-even is at {shown}{more}",
                f"use a lower rank; up to {SHARE.format(PAYS)} of break-even a split is also not slower",
            )

    def _why(self, name: str) -> str:
        return f"rank {self._rank_text()} saves no weights, its break-even is {self._break_even(name):.4g}"

    def _rank_text(self) -> str:
        """Return the requested rank, and the one it is rounded to on this device."""
        rank = max(self.block, round(self.asked / self.block) * self.block)
        return str(rank) if rank == self.asked else f"{rank} ({self.asked} in whole blocks of {self.block})"

    def _remarks(self, splits: Mapping[str, tuple[Curve, int]]) -> Iterator[tuple[str, str]]:
        for name, (_, rank) in splits.items():
            limit = self.survey.sites[name].pays(self.survey.sites[name].schemes[0])
            rounded = [f"{self.asked} rounded to blocks"] if rank != self.asked else []
            slow = [f"it may not be faster: a split is faster up to rank {int(limit)}"] if rank > limit else []
            if rounded or slow:
                yield name, "; ".join([*rounded, *slow])


class AtEnergy:
    """Split every layer at the lowest rank that keeps this share of its energy, where that is faster."""

    upto = PAYS

    def __init__(
        self, survey: Survey, energy: float, block: int, metric: Metric = "params", *, up: bool = True
    ) -> None:
        self.survey, self.energy, self.block, self.metric, self.up = survey, energy, block, metric, up
        self.wanted = {name: site.schemes for name, site in survey.sites.items()}
        self.known: dict[str, tuple[SplitScheme, int]] = {}

    def decide(self, curves: Curves) -> Decision:
        splits = self.splits(curves)
        rest = {name: self._why(name, curves[name]) for name in self.wanted if name not in splits and curves[name]}
        return Decision(splits=splits, whole={**_silent(curves), **rest})

    def splits(self, curves: Curves) -> dict[str, tuple[Curve, int]]:
        """Choose for each layer the scheme that saves most."""
        ranked = {name: sorted(self._able(name, found), key=_saved) for name, found in curves.items()}
        return {name: able[-1][1:] for name, able in ranked.items() if able and _saved(able[-1]) > 0}

    def _able(self, name: str, curves: tuple[Curve, ...]) -> Iterator[tuple[float, Curve, int]]:
        """Yield what each scheme saves, and at which rank."""
        site = self.survey.sites[name]
        for curve in curves:
            needs, rank = self._needs(name, curve)
            if max(needs, rank) <= site.pays(curve.scheme):
                yield site.saved(self.metric, curve.scheme, rank), curve, rank

    def _needs(self, name: str, curve: Curve) -> tuple[int, int]:
        """Return the rank needed, and the rank in whole blocks: rounding up costs no energy."""
        rank = needed(curve, self.energy)
        return rank, _blocks(self.survey.sites[name], curve.scheme, rank, self.block, up=self.up)

    def _why(self, name: str, curves: tuple[Curve, ...]) -> str:
        if any(self._able(name, curves)):
            return f"no split of it saves {NOUNS[self.metric]}"
        limits = [f"{int(self.survey.sites[name].pays(curve.scheme))}{IN[curve.scheme]}" for curve in curves]
        needs = " or ".join(self._needs_words(name, curve) for curve in curves)
        gain = f"a split is faster only up to rank {' or '.join(limits)}"
        return f"{percent(self.energy)} of its energy needs rank {needs}, {gain}"

    def _needs_words(self, name: str, curve: Curve) -> str:
        rank, known = max(self._needs(name, curve)), len(curve.retained_energy)
        return f"{rank if rank <= known else f'above {known}'}{IN[curve.scheme]}"


class ForTarget:
    """Find the energy, one for all layers, at which the model meets the target."""

    upto = PAYS

    def __init__(self, survey: Survey, candidate: Candidate, target: Target, block: int) -> None:
        self.survey, self.target, self.block = survey, target, block
        self.now = _amount(candidate, target.metric)
        self.limit = target.limit(self.now)
        self.wanted = {name: site.schemes for name, site in survey.sites.items()}
        self.known: dict[str, tuple[SplitScheme, int]] = {}
        self._refuse(self.now - sum(self._most(site) for site in survey.sites.values()))

    def decide(self, curves: Curves) -> Decision:
        if self.limit >= self.now:
            there = f"nothing to do: the model has {self.target.tell(self.now)}, the target is {self.target.words()}"
            return Decision(splits={}, whole=dict.fromkeys(self.wanted, "the target is already met"), heading=(there,))
        self._refuse(self._left(curves, 0.0))
        nines = _highest(lambda nines: self._left(curves, 1 - 10**-nines) <= self.limit)
        best = self._at(1 - 10**-nines)
        left = self.target.tell(self._left(curves, best.energy))
        heading = f"target {self.target.words()}: {left} are left, at {percent(best.energy)} of every layer's energy"
        return replace(best.decide(curves), heading=(heading,))

    def _at(self, energy: float) -> AtEnergy:
        return AtEnergy(self.survey, energy, self.block, self.target.metric, up=False)

    def _left(self, curves: Curves, energy: float) -> float:
        splits = self._at(energy).splits(curves).items()
        saved = (self.survey.sites[n].saved(self.target.metric, curve.scheme, rank) for n, (curve, rank) in splits)
        return self.now - sum(saved)

    def _most(self, site: Site) -> float:
        """Return what a split can save at most: at a rank of one block."""
        ranks = [(scheme, _blocks(site, scheme, 1, self.block)) for scheme in site.schemes]
        able = [site.saved(self.target.metric, scheme, rank) for scheme, rank in ranks if rank <= site.pays(scheme)]
        return max([0.0, *able])

    def _refuse(self, least: float) -> None:
        if least <= self.limit:
            return
        share = SHARE.exact(math.ceil(1000 * least / self.now) / 1000)  # rounded up: it must be reachable itself
        reached = f"the closest is {self.target.tell(least)}, {share} of the current model"
        closest = f"at one block of {self.block} in every layer {reached}"
        hint = f"the closest possible target is {share}: split more layers, or prune first"
        if least >= self.now:
            closest, hint = f"no layer becomes smaller at one block of {self.block}", "name wider layers"
        raise StageError(f"splits cannot reach the target of {self.target.words()}: {closest}", hint)


def _highest(fits: Callable[[float], bool]) -> float:
    """Find by bisection the largest number up to _FINEST that fits; 0 fits, and if a number fits, all below it do."""
    low, high = 0.0, _FINEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _saved(able: tuple[float, Curve, int]) -> float:
    return able[0]


def _blocks(site: Site, scheme: SplitScheme, rank: int, block: int, *, up: bool = False) -> int:
    """Return a rank in whole blocks, at least one block, at most the full rank of the matrix."""
    full = site.full(scheme)
    return min(full, math.ceil(rank / block) * block) if up else nearest(rank, block, most=full)


def _amount(candidate: Candidate, metric: Metric) -> float:
    if metric == "macs":
        return macs(candidate)
    return parameters(candidate.module) if metric == "params" else stored_bytes(candidate.module)


def _silent(curves: Curves) -> dict[str, str]:
    return {name: "its outputs were all zero in calibration" for name, found in curves.items() if not found}


def percent(energy: float) -> str:
    """
    >>> percent(0.975314), percent(0.99999999)
    ('97.531 %', '99.999 %')
    """
    return SHARE.format(min(energy, 0.99999), digits=5)  # less than all must not be shown as 100 %
