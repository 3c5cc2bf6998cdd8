"""Define a model's inputs and outputs: names, shapes, types, labels, preprocessing."""

from typing import Any

from pydantic import field_validator

from edgepack.core.errors import RecipeError
from edgepack.core.frozen import Frozen
from edgepack.core.signature.labels import problem


class TensorSpec(Frozen):
    """One input of a model, without its batch dimension."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


class Signature(Frozen):
    """The inputs and outputs of a model: enough to build it, and for an app to call it.

    Raises RecipeError for a label that an app cannot read from one line of text.
    """

    inputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    preprocessing: dict[str, Any] = {}  # how raw data becomes the inputs, exactly as in training

    @field_validator("labels")
    @classmethod
    def _usable(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if why := problem(labels):
            raise RecipeError(why, "give the class another name")
        return labels
