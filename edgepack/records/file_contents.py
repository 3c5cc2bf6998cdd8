"""Define the contents of an exported file: stored tensors by layer and type, and operators.

Read from the file itself by its exporter's `inspect`. What a file takes above its tensors is its overhead: the graph,
names, padding.
"""

from collections import Counter
from collections.abc import Iterable

from pydantic import Field

from edgepack.core.frozen import Frozen

OTHER = "other"  # layer of tensors that belong to none, or whose layer is unknown
OPAQUE = "not told"  # operator kind of a part whose format only its backend knows
UNREAD = "unread"  # type of the tensors stored in such a part
SEVERAL = "several layers"  # layer of tensors that are stored once because several layers share them


class Stored(Frozen):
    """All tensors of one type that a layer stores: ("layer1.0.conv1", "int8", 36_864)."""

    layer: str
    dtype: str
    bytes: int


class Contents(Frozen):
    """`operators` are those computed by the runtime itself, `delegated` those passed to a backend.

    `arena_bytes` is the memory planned for activations, if the format plans any; backends use their own in addition.
    """

    tensors: tuple[Stored, ...] = Field(strict=False)  # a list in the store, as JSON has no tuples
    operators: dict[str, int]
    delegated: dict[str, dict[str, int]] = {}
    arena_bytes: int | None = None

    @property
    def stored_bytes(self) -> int:
        return sum(each.bytes for each in self.tensors)

    @property
    def delegation(self) -> float | None:
        """Return the share of operators that backends run; None if a backend hides its operators."""
        handed = [(kind, count) for inside in self.delegated.values() for kind, count in inside.items()]
        total = sum(self.operators.values()) + sum(count for _, count in handed)
        opaque = any(kind == OPAQUE for kind, _ in handed)
        return None if opaque or not total else sum(count for _, count in handed) / total

    def by_dtype(self) -> dict[str, int]:
        """Return the bytes of each type, largest first."""
        total: Counter[str] = Counter()
        for each in self.tensors:
            total[each.dtype] += each.bytes
        return dict(total.most_common())


def gathered(tensors: Iterable[Stored]) -> tuple[Stored, ...]:
    """Return one entry per layer and type, in the order of their first occurrence.

    >>> [each.bytes for each in gathered([Stored(layer="a", dtype="int8", bytes=n) for n in (1, 2)])]
    [3]
    """
    total: Counter[tuple[str, str]] = Counter()
    for each in tensors:
        total[each.layer, each.dtype] += each.bytes
    return tuple(Stored(layer=layer, dtype=dtype, bytes=size) for (layer, dtype), size in total.items())
