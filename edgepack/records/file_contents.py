"""Define the contents of an exported file: stored tensors by layer and type, and operators.

Read from the file itself by its exporter's `inspect`. What a file takes above its tensors is its overhead: the graph,
names, padding.
"""

from collections import Counter
from collections.abc import Iterable

from pydantic import Field

from edgepack.core.frozen import Frozen

OTHER = "other"  # the layer of what belongs to none, or to none that could be found out
OPAQUE = "not told"  # the kind of operator of a piece that a backend keeps in a form of its own
UNREAD = "unread"  # and the type of what is stored in it
SEVERAL = "several layers"  # of what is stored once because it is the same in all of them


class Stored(Frozen):
    """All tensors of one type that a layer stores: ("layer1.0.conv1", "int8", 36_864)."""

    layer: str
    dtype: str
    bytes: int


class Contents(Frozen):
    """`operators` are those that the runtime itself computes, `delegated` those that it hands to a backend.

    `arena_bytes` is the memory planned for activations, where the format plans any; backends take their own beside it.
    """

    tensors: tuple[Stored, ...] = Field(strict=False)  # in the store it is a list, as JSON has it
    operators: dict[str, int]
    delegated: dict[str, dict[str, int]] = {}
    arena_bytes: int | None = None

    @property
    def stored_bytes(self) -> int:
        return sum(each.bytes for each in self.tensors)

    @property
    def delegation(self) -> float | None:
        """The share of operators that backends run; None where a backend keeps its own to itself."""
        handed = [(kind, count) for inside in self.delegated.values() for kind, count in inside.items()]
        total = sum(self.operators.values()) + sum(count for _, count in handed)
        opaque = any(kind == OPAQUE for kind, _ in handed)
        return None if opaque or not total else sum(count for _, count in handed) / total

    def by_dtype(self) -> dict[str, int]:
        """Bytes of each type, the most first."""
        total: Counter[str] = Counter()
        for each in self.tensors:
            total[each.dtype] += each.bytes
        return dict(total.most_common())


def gathered(tensors: Iterable[Stored]) -> tuple[Stored, ...]:
    """One entry a layer and type, in the order in which they come first.

    >>> [each.bytes for each in gathered([Stored(layer="a", dtype="int8", bytes=n) for n in (1, 2)])]
    [3]
    """
    total: Counter[tuple[str, str]] = Counter()
    for each in tensors:
        total[each.layer, each.dtype] += each.bytes
    return tuple(Stored(layer=layer, dtype=dtype, bytes=size) for (layer, dtype), size in total.items())
