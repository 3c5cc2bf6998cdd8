"""Choose which pictures each split holds: one of equal ones, the same share of every class."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgepack.core.errors import RecipeError
from edgepack.data.folders import counted
from edgepack.data.partition import ONCE, copied, drawn, enough, missing, whereabouts
from edgepack.data.pictures.decoding import Decoded
from edgepack.data.pictures.encoded import Encoded, place
from edgepack.data.texts.targets import Target

_PARTS = ("test", "validation", "train")  # a picture in two parts stays in the first of these

Classes = Mapping[str, Sequence[Encoded]]  # the pictures of each class
_Lost = dict[tuple[str, int], list[str]]  # why pictures were dropped, by part and label


@dataclass(frozen=True, kw_only=True)
class Picture:
    part: str
    label: int
    file: Encoded
    sha: str  # equal for equal files
    target: Target | None = None  # of pictures without classes

    @property
    def right(self) -> object:
        return self.label, self.target


def every(
    parts: Mapping[str, Classes], shas: Mapping[Encoded, str], targets: Mapping[Encoded, Target] = {}
) -> list[Picture]:
    """Return all pictures; if two parts have copies, those that are kept come first."""
    return [
        Picture(part=part, label=label, file=file, sha=shas[file], target=targets.get(file))
        for part in _PARTS
        for label, files in enumerate(parts.get(part, {}).values())
        for file in files
    ]


def chosen(
    parts: Mapping[str, Classes], pictures: Sequence[Picture], read: Mapping[str, Decoded], shares: Mapping[str, float]
) -> tuple[dict[str, list[Picture]], list[str]]:
    """Return the pictures of each split, shuffled, so that the first samples are a fair choice, and remarks on those
    that were dropped.

    `read` tells by hash what was found in each that can be read; `shares` are those of splits that have no folder.
    Raises RecipeError naming a class or split that has too few left.
    """
    same: dict[str, list[Picture]] = {}
    for picture in pictures:
        if picture.sha in read:
            same.setdefault(read[picture.sha].content, []).append(picture)
    groups = [*same.values()]
    kept, notes = _deduplicated(groups, read)
    lost = _lost(groups, [*parts["train"]])
    for picture in pictures:
        if picture.sha not in read:
            lost.setdefault((picture.part, picture.label), []).append("unreadable")
    return _drawn(parts, shares, kept, lost), notes


def _deduplicated(groups: Sequence[Sequence[Picture]], read: Mapping[str, Decoded]) -> tuple[list[Picture], list[str]]:
    """Return one of each group of equal pictures, or none if their labels differ, and remarks on the dropped ones."""
    count = sum(map(len, groups))
    clear = [group for group in groups if len({each.right for each in group}) == 1]
    doubtful = [group for group in groups if len({each.right for each in group}) > 1]
    kept = [group[0] for group in clear]
    return kept, [
        *_copies(sum(map(len, clear)) - len(kept), count),
        *_contradictions(doubtful, count),
        *_transparent(sum(read[each.sha].transparent for each in kept)),
        *_several(sum(read[each.sha].several for each in kept)),
    ]


def _copies(count: int, of: int) -> Iterator[str]:
    if count:
        yield f"{count} of {of} pictures are copies of others: one of each is kept"


def _contradictions(groups: Sequence[Sequence[Picture]], of: int) -> Iterator[str]:
    if groups:
        first = groups[0][0]
        other = next(each for each in groups[0] if each.right != first.right)
        which = f"such as {place(first.file)} and {place(other.file)}"
        yield f"{sum(map(len, groups))} of {of} pictures have copies with another label, {which}: none of them is used"


def _transparent(count: int) -> Iterator[str]:
    if count:
        yield f"{counted(count, 'picture')} partly transparent: the colours stored there are used"


def _several(count: int) -> Iterator[str]:
    if count:
        yield f"{counted(count, 'picture')} with several frames or pages: the first is used"


def _lost(groups: Sequence[Sequence[Picture]], labels: Sequence[str]) -> _Lost:
    """Return what became of the pictures that are not kept."""
    lost: _Lost = {}
    for group in groups:
        known = {each.label for each in group}
        for each in group if len({one.right for one in group}) > 1 else group[1:]:
            other = min(known - {each.label}, default=None)
            fate = copied(each.part, group[0].part) if other is None else f"under the label {labels[other]!r} too"
            lost.setdefault((each.part, each.label), []).append(fate)
    return lost


def _drawn(
    folders: Mapping[str, Classes], shares: Mapping[str, float], pictures: Sequence[Picture], lost: _Lost
) -> dict[str, list[Picture]]:
    given = {part: [each for each in pictures if each.part == part] for part in folders}
    shares = missing(given, shares)
    counts, classes = Counter(picture.label for picture in given["train"]), folders["train"]
    gone = {
        name: whereabouts(lost["train", i], len(files), "picture")
        for i, (name, files) in enumerate(classes.items())
        if ("train", i) in lost
    }
    enough({name: counts[i] for i, name in enumerate(classes)}, shares, "different picture", gone)
    parts: dict[str, list[Picture]] = {}
    for part, members in given.items():
        if not members:
            fates = [fate for (where, _), each in lost.items() if where == part for fate in each]
            reason = whereabouts(fates, len(fates), "picture")
            raise RecipeError(f"the {part} split has no picture that other splits lack: {reason}", ONCE)
        chosen = drawn([each.label for each in members], shares if part == "train" else {})
        # If nothing is drawn from it, the whole part comes back under the name train.
        parts |= {part if name == "train" else name: [members[i] for i in where] for name, where in chosen.items()}
    return parts
