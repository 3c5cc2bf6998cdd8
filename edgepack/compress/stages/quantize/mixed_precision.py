"""Which blocks of a network are left in fp32 because int8 is slower there, found by timing it on the device.

Int8 and fp32 everywhere are timed first, then int8 with each block in fp32. Beginning with what was fastest, blocks are
put together as long as that gains more than timings scatter: a block with neighbours in int8 pays for the way there and
back, so neighbours are tried too. What wins is timed against int8 once more, in turns, before it is believed.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from edgepack.compress.contract import Context
from edgepack.compress.stages.quantize.capture import EVERYTHING
from edgepack.core.errors import StageError
from edgepack.core.events import StepProgress
from edgepack.core.units import DURATION, SIZE

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate

Patterns = tuple[str, ...]
Group = tuple[str, ...]  # neighbouring blocks that are tried as one
Left = frozenset[int]  # indices of the groups kept in fp32

_NOISE = 0.02  # a smaller gain counts as none
_GROUPS = 8  # groups that are tried one by one
_SETS = 4  # sets of several groups that are tried
_ROUNDS = 3  # alternating timings of the best set and of int8; by chance one in twenty would be faster in all
_NONE: Left = frozenset()


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The layers that stay in fp32, and why."""

    fp32: Patterns
    notes: tuple[str, ...]


def blocks(layers: Sequence[str]) -> tuple[str, ...]:
    """Return a network's blocks in order: a layer's name up to its first number, else the name of its parent.

    >>> blocks(["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "pooler.dense", "features.dense1.conv"])
    ('conv1', 'layer1.0', 'layer1.1', 'pooler', 'features.dense1')
    """
    found = {layer: _block(layer) for layer in layers}
    around = {block for block in found.values() if any(other.startswith(f"{block}.") for other in found.values())}
    return tuple(dict.fromkeys(layer if block in around else block for layer, block in found.items()))


def _block(layer: str) -> str:
    parts = layer.split(".")
    inner = range(1, len(parts))
    numbered = next((end for end in range(1, len(parts) + 1) if parts[end - 1].isdigit()), None)
    named = next((end for end in inner if parts[end - 1][-1:].isdigit()), None)
    return ".".join(parts[: numbered or named or max(1, len(parts) - 1)])


def grouped(blocks: Sequence[str], most: int = _GROUPS) -> tuple[Group, ...]:
    """
    >>> grouped(["a", "b", "c", "d", "e"], 3)
    (('a', 'b'), ('c', 'd'), ('e',))
    """
    count = min(len(blocks), most)
    size, longer = divmod(len(blocks), count) if count else (0, 0)
    starts = [i * size + min(i, longer) for i in range(count + 1)]
    return tuple(tuple(blocks[start:end]) for start, end in pairwise(starts))


@dataclass(kw_only=True)
class Trials:
    """Times a network with some of its groups in fp32, each set of groups once.

    `given` stays in fp32 always; `make` returns the network with these layers in fp32, good for timing only.
    """

    given: Patterns
    groups: tuple[Group, ...]
    make: Callable[[Patterns], "Candidate"]
    context: Context
    known: dict[Left, float] = field(default_factory=dict)
    weights: dict[Left, int] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    done: int = 0

    @property
    def all(self) -> Left:
        return frozenset(range(len(self.groups)))

    @property
    def most(self) -> int:
        """Return the largest number of timings."""
        return self.sets + 1 + 2 * _ROUNDS

    @property
    def sets(self) -> int:
        """Return the largest number of networks to time: int8, fp32, each group alone, and sets of several."""
        return 2 + len(self.groups) + _SETS

    def patterns(self, left: Left) -> Patterns:
        if left == self.all:
            return (EVERYTHING,)
        return (*self.given, *(block for i in sorted(left) for block in self.groups[i]))

    def ms(self, left: Left) -> float:
        """Return the latency of one inference; infinite if that would be one set too many."""
        if left not in self.known:
            self.known[left] = self.again(left) if len(self.known) < self.sets else math.inf
        return self.known[left]

    def again(self, left: Left) -> float:
        if self.context.latency is None:
            raise StageError("no device here can measure latency", "name the layers to keep in fp32, or none")
        self._tell()
        self.done += 1
        return self.context.latency(self._made(left))

    def _made(self, left: Left) -> "Candidate":
        return self.make(self.patterns(left))

    def _tell(self) -> None:
        spent, left = time.monotonic() - self.started, self.most - self.done
        seconds = spent / self.done * left if self.done else None
        doing = "timing int8 and fp32 on the device"
        self.context.emit(StepProgress(doing=doing, done=self.done, total=self.most, seconds_left=seconds))

    def faster(self, left: Left, than: Left) -> bool:
        """Return whether it is faster by more than noise, with no file above the size budget."""
        return self.may_fit(left) and self.ms(left) < (1 - _NOISE) * self.ms(than) and self.fits(left)

    def may_fit(self, left: Left) -> bool:
        """Return whether the weights alone are within the size budget."""
        from edgepack.models.complexity import stored_bytes

        if self.context.size_budget is None:
            return True
        if left not in self.weights:
            self.weights[left] = stored_bytes(self._made(left).module)
        return self.weights[left] <= self.context.size_budget

    def fits(self, left: Left) -> bool:
        """Return whether every file made from it is within the size budget."""
        budget, size = self.context.size_budget, self.context.size
        return budget is None or size is None or size(self._made(left)) <= budget

    def confirmed(self, left: Left) -> bool:
        """Return whether it is faster than int8 in every one of some alternating timings, and by more than noise."""
        ours, int8 = [], []
        for _ in range(_ROUNDS):
            ours.append(self.again(left))
            int8.append(self.again(_NONE))
        return max(ours) < min(int8) and sum(ours) < (1 - _NOISE) * sum(int8)


def decide(trials: Trials) -> Precision:
    """Choose the layers to keep in fp32. Raises StageError where nothing can measure latency."""
    trials.ms(_NONE), trials.ms(trials.all)  # first, so that the limit on sets does not exclude them
    grown = _grown(trials)
    best = trials.all if trials.faster(trials.all, grown) else grown
    timed = f"int8 everywhere {_ms(trials.ms(_NONE))}, fp32 everywhere {_ms(trials.ms(trials.all))}"
    if best and not trials.confirmed(best):
        reason = f"int8 everywhere: layers that seemed faster in fp32 were not faster when timed again ({timed})"
        return Precision(fp32=trials.given, notes=(reason,))
    notes = tuple(_notes(trials, best, timed))
    return Precision(fp32=trials.patterns(best) if best else trials.given, notes=notes)


def _grown(trials: Trials) -> Left:
    """Start with the fastest group, and add each group that gains or lies beside one that does, if that is faster."""
    best = _NONE
    each = {i: frozenset([i]) for i in range(len(trials.groups))}
    alone = {i: trials.ms(left) for i, left in each.items() if trials.may_fit(left)}
    # A slow moment at the start would make everything else look fast.
    int8 = trials.known[_NONE] = min(trials.ms(_NONE), trials.again(_NONE))
    for i in sorted(alone, key=lambda i: alone[i]):
        if alone[i] < int8 or not best.isdisjoint((i - 1, i + 1)):
            best = best | {i} if trials.faster(best | {i}, best) else best
    together = frozenset(i for i in alone if alone[i] < int8)
    for left in (together, *_neighbours(alone)) if not best else (together,):
        best = left if trials.faster(left, best) else best
    return best


def _neighbours(alone: dict[int, float]) -> Iterator[Left]:
    """Yield the two neighbouring pairs that lost least alone."""
    pairs = [i for i in alone if i + 1 in alone]
    yield from (frozenset([i, i + 1]) for i in sorted(pairs, key=lambda i: alone[i] + alone[i + 1])[:2])


def _notes(trials: Trials, best: Left, timed: str) -> Iterator[str]:
    int8 = trials.ms(_NONE)
    if best == trials.all:
        yield f"nothing is int8: fp32 everywhere is faster here ({timed})"
        return
    yield f"{timed}, mixed {_ms(trials.ms(best))}" if best else f"int8 everywhere is fastest here: {timed}"
    for i in sorted(best):
        alone = trials.known.get(frozenset([i]), math.inf)
        why = f"{_ms(int8)} -> {_ms(alone)} alone" if alone < int8 else "with another"
        yield f"faster in fp32 here: {', '.join(trials.groups[i])} ({why})"
    budget = trials.context.size_budget
    if budget is not None and trials.ms(trials.all) < (1 - _NOISE) * trials.ms(best):
        yield f"fp32 everywhere would be faster still, but its file is above the size budget of {SIZE.format(budget)}"


def _ms(value: float) -> str:
    return DURATION.format(value)
