"""Define a model's inputs and outputs: names, shapes, types, labels, preprocessing."""

from typing import Any, Self

from pydantic import field_validator, model_validator

from edgepack.core.errors import RecipeError
from edgepack.core.frozen import Frozen
from edgepack.core.signature.labels import problem


class TensorSpec(Frozen):
    """One input or output of a model, without its batch dimension."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


class Signature(Frozen):
    """The inputs and outputs of a model: enough to build it, and for an app to call it.

    A data set describes inputs and labels, and its task the outputs: by default one number a label. Raises RecipeError
    for a label that an app cannot read from one line of text.
    """

    inputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    preprocessing: dict[str, Any] = {}  # how raw data becomes the inputs, exactly as in training

    @model_validator(mode="after")
    def _one_number_a_label(self) -> Self:
        if self.labels and not self.outputs:
            object.__setattr__(self, "outputs", (TensorSpec(name="logits", shape=(len(self.labels),)),))
        return self

    @property
    def width(self) -> int:
        """Return the numbers of a sample's only output, such as its classes."""
        return self.outputs[0].shape[0]

    @property
    def is_embedding(self) -> bool:
        """Return whether the only output is an embedding, of which an encoder is all there is: it needs no head."""
        return [spec.name for spec in self.outputs] == ["embedding"]

    @field_validator("labels")
    @classmethod
    def _usable(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if why := problem(labels):
            raise RecipeError(why, "give the class another name")
        return labels
