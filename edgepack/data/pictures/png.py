"""Pictures and masks as PNG files in base64, small enough for a report."""

import base64
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

    Array = numpy.typing.NDArray[Any]

_LARGEST = 192  # side of a picture
# Of classes: hues that are told apart by most people, also by those who confuse red and green (P. Tol, Colour Schemes,
# SRON technical note 2021, "bright" and "muted").
_COLORS = (
    (0, 0, 0),
    (238, 102, 119),
    (68, 119, 170),
    (204, 187, 68),
    (34, 136, 51),
    (102, 204, 238),
    (170, 51, 119),
    (221, 204, 119),
    (51, 34, 136),
    (204, 102, 119),
    (17, 119, 51),
    (136, 204, 238),
)


def picture(values: "Array") -> str:
    """Return a model's input [channels, height, width] as a picture, its numbers spread from black to white; "" for an
    input that is none.
    """
    import numpy
    from PIL import Image

    if values.ndim != 3 or values.shape[0] not in (1, 3):
        return ""
    low, high = float(values.min()), float(values.max())
    spread = (values.astype("float32") - low) * (255 / (high - low) if high > low else 0)
    pixels = spread.round().astype(numpy.uint8).transpose(1, 2, 0)
    made = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    made.thumbnail((_LARGEST, _LARGEST))
    return _encoded(made)


def mask(classes: "Array") -> str:
    """Return classes [height, width] as a picture of their colours; the first class and those above 250 are black."""
    import numpy
    from PIL import Image

    numbers = numpy.where(classes > 250, 0, classes).astype(numpy.uint8)
    made = Image.fromarray(numbers)
    made.putpalette([value for number in range(256) for value in _color(number)])
    made.thumbnail((_LARGEST, _LARGEST), Image.Resampling.NEAREST)
    return _encoded(made)


def _color(number: int) -> tuple[int, int, int]:
    return _COLORS[0] if number == 0 else _COLORS[1 + (number - 1) % (len(_COLORS) - 1)]


def _encoded(made: Any) -> str:
    written = io.BytesIO()
    made.save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()
