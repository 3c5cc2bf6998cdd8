"""What an app would show of a model's outputs for a sample: words, boxes, a mask. Reports draw it over the picture."""

from edgepack.core.frozen import Frozen


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
