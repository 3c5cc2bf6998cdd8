"""UCI hand-written digits, 1,797 pictures of 8 x 8 in 10 classes, from scikit-learn.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from edgepack.core.errors import RecipeError
from edgepack.core.files import digest, file_digest
from edgepack.core.frozen import Frozen
from edgepack.core.provenance import versions
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.pictures.moving import moved
from edgepack.data.splits import Data, Split

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from edgepack.data.splits import Augment

LICENCE = "CC-BY-4.0"  # https://archive.ics.uci.edu/dataset/80
_SPLITS = {"train": 0.60, "validation": 0.15, "test": 0.25}


class Config(Frozen):
    size: int = Field(default=32, ge=8, le=224, description="side of the square picture in pixels, scaled bilinearly")
    augment: bool = Field(default=False, description="shift training pictures by up to 1/16 of their side")


def describe(config: Config) -> Signature:
    steps = {
        "color": "grey",
        "resize": {"to": [config.size, config.size], "from": [8, 8], "interpolation": "bilinear"},
        "scale": {"from": [0, 16], "to": [0, 1]},
    }
    picture = TensorSpec(name="input", shape=(1, config.size, config.size))
    return Signature(inputs=(picture,), labels=tuple(str(digit) for digit in range(10)), preprocessing=steps)


def fingerprint(config: Config) -> str:
    # The versions determine the splits: another one might put today's test samples into training.
    drawn_by = versions("scikit-learn", "numpy")
    return digest({"file": file_digest(_file()), "splits": _SPLITS, **config.model_dump(), "versions": drawn_by})


def load(config: Config) -> Data:
    """Return splits with the same share of every class, drawn once with a fixed seed."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    pictures = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16
    pictures = torch.nn.functional.interpolate(pictures, size=config.size, mode="bilinear", align_corners=False)
    targets = torch.tensor(raw.target)
    rest, test = train_test_split(range(len(targets)), test_size=_SPLITS["test"], stratify=targets, random_state=0)
    share = _SPLITS["validation"] / (1 - _SPLITS["test"])
    train, validation = train_test_split(rest, test_size=share, stratify=targets[rest], random_state=0)

    def split(part: list[int], augment: "Augment | None" = None) -> Split:
        return Split(inputs=(pictures[part],), targets=targets[part], augment=augment)

    shifted = partial(_shifted, size=config.size) if config.augment else None
    return Data(train=split(train, shifted), validation=split(validation), test=split(test))


def _shifted(inputs: "tuple[Tensor, ...]", random: "Generator", size: int) -> "tuple[Tensor, ...]":
    from torch.nn.functional import pad

    return (moved(pad(inputs[0], [max(1, size // 16)] * 4), size, random, mirror=False),)


def _file() -> Path:
    spec = find_spec("sklearn")  # found, not imported: planning must be fast
    if spec is None or spec.origin is None:
        raise RecipeError(
            "the data set 'digits' comes with scikit-learn, which is not installed", "pip install scikit-learn"
        )
    return Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
