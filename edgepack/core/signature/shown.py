"""What an app would show of a model's outputs for a sample: words, boxes, a mask. Reports draw it over the picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgepack.core.frozen import Frozen

if TYPE_CHECKING:
    import numpy

    Array = numpy.typing.NDArray[Any]

_TOLD = 4  # numbers of an output that are told


class Box(Frozen):
    """A rectangle, its edges as shares of the picture's width and height."""

    left: float
    top: float
    right: float
    bottom: float
    label: str


class Shown(Frozen):
    """`mask` is a PNG in base64, whose colours are classes."""

    words: str = ""
    boxes: tuple[Box, ...] = ()
    mask: str = ""


class Sample(Frozen):
    """A sample of the test split: its picture as a PNG in base64, or its text; what is right, and what each file gives.

    `files` are by label; "torch" is the model that they were exported from.
    """

    picture: str = ""
    text: str = ""
    truth: Shown = Shown()
    files: dict[str, Shown] = {}


def beginnings(names: Sequence[str], outputs: "Sequence[Array]") -> list[str]:
    """Return the first numbers of each output in words, for every sample.

    >>> import numpy
    >>> beginnings(["boxes", "scores"], (numpy.ones((1, 2, 4)), numpy.array([[0.25]])))
    ['boxes 1 1 1 1 ..., scores 0.25']
    """

    def told(name: str, numbers: "Array") -> str:
        first = " ".join(f"{number:.4g}" for number in numbers[:_TOLD])
        return f"{name} {first}{' ...' if len(numbers) > _TOLD else ''}"

    rows = range(len(outputs[0]))
    return [
        ", ".join(told(name, array[row].reshape(-1)) for name, array in zip(names, outputs, strict=True))
        for row in rows
    ]
