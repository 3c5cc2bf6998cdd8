"""Choose which sounds each split holds: one of equal ones, the same share of every class."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.core.errors import RecipeError
from edgepack.data.folders import shown
from edgepack.data.partition import ONCE, drawn, enough, missing

if TYPE_CHECKING:
    from edgepack.data.sounds.decoding import Sound

_PARTS = ("test", "validation", "train")  # a sound in two parts stays in the first of these


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One sound as a model may hear it, and a digest that is equal for equal ones."""

    part: str
    label: int
    file: Path
    samples: "Sound"
    content: str


def heard(part: str, label: int, file: Path, samples: "Sound") -> Heard:
    return Heard(part=part, label=label, file=file, samples=samples, content=hashlib.sha256(samples.data).hexdigest())


def chosen(
    sounds: Sequence[Heard], labels: Sequence[str], given: Sequence[str], shares: Mapping[str, float]
) -> tuple[dict[str, list[Heard]], list[str]]:
    """Return the sounds of each split, shuffled, and remarks on those that were dropped.

    `given` are the splits that have a folder. Raises RecipeError naming a class or split that has too few left.
    """
    kept, notes = _different(sounds)
    shares = missing(given, shares)
    counts = Counter(each.label for each in kept if each.part == "train")
    gone = {name: "; ".join(notes) for name in labels if notes}
    enough({name: counts[i] for i, name in enumerate(labels)}, shares, "different sound", gone)
    parts: dict[str, list[Heard]] = {}
    for part in given:
        members = [each for each in kept if each.part == part]
        if not members:
            raise RecipeError(f"the {part} split has no sound that other splits lack", ONCE)
        rows = drawn([each.label for each in members], shares if part == "train" else {})
        # If nothing is drawn from it, the whole part comes back under the name train.
        parts |= {part if name == "train" else name: [members[i] for i in where] for name, where in rows.items()}
    return parts, notes


def _different(sounds: Sequence[Heard]) -> tuple[list[Heard], list[str]]:
    """Return one of each group of equal sounds, or none if their labels differ, and remarks on the dropped ones."""
    groups: dict[str, list[Heard]] = {}
    for each in sorted(sounds, key=lambda each: _PARTS.index(each.part)):
        groups.setdefault(each.content, []).append(each)
    clear = [group for group in groups.values() if len({each.label for each in group}) == 1]
    doubtful = [group for group in groups.values() if len({each.label for each in group}) > 1]
    notes = []
    if copies := sum(map(len, clear)) - len(clear):
        notes.append(f"{copies} of {len(sounds)} sounds begin like others: one of each is kept")
    if doubtful:
        first = doubtful[0][0]
        other = next(each for each in doubtful[0] if each.label != first.label)
        which = f"such as {shown(first.file)} and {shown(other.file)}"
        count = sum(map(len, doubtful))
        notes.append(f"{count} of {len(sounds)} sounds begin like others with another label, {which}: none is used")
    return [group[0] for group in clear], notes
