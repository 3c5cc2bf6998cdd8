"""What rows of a table tell of their samples: a label, numbers, or any number of tags.

label: species          a class                     int64 [n]
targets: [age, height]  a number for each column    float32 [n, 2], for a regression
tags: topics            labels, in one column       float32 [n, labels] of 0 and 1, for several labels a sample
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from edgepack.core.errors import RecipeError
from edgepack.core.frozen import Frozen
from edgepack.core.signature.labels import flaw, problem

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = 3.4e38  # of float32
Target = str | tuple[float, ...] | tuple[str, ...]  # a label, numbers, or sorted tags


class TargetColumns(Frozen):
    """Settings of data sets that say in columns what is right."""

    label: str = Field(default="label", description="column with the class")
    targets: tuple[str, ...] = Field(
        default=(), description="columns with numbers, instead of a class: for the task regression"
    )
    tags: str | None = Field(
        default=None, description="column with any number of labels: for the task multi_label_classification"
    )
    separator: str = Field(default=";", min_length=1, description="what stands between two tags")

    @model_validator(mode="after")
    def _of_one_kind(self) -> "TargetColumns":
        if self.targets and self.tags is not None:
            raise ValueError("samples have numbers or tags: give targets or tags")
        if why := problem(self.targets):
            raise ValueError(why.replace("label", "column"))
        return self

    @property
    def are_classes(self) -> bool:
        return not self.targets and self.tags is None

    @property
    def of_target(self) -> tuple[str, ...]:
        """Return the columns that say what is right."""
        return self.targets or (self.label if self.tags is None else self.tags,)

    def target(self, place: str, values: Sequence[str]) -> Target:
        """Return what these columns of a row say. Raises RecipeError with the row's place."""
        if self.targets:
            return tuple(number(place, column, text) for column, text in zip(self.targets, values, strict=True))
        return label(place, values[0]) if self.tags is None else self._tags(place, values[0])

    def _tags(self, place: str, text: str) -> tuple[str, ...]:
        return tuple(sorted({label(place, each) for each in text.split(self.separator) if text.strip()}))

    def labels(self, train: Iterable[Target]) -> list[str]:
        """Return the labels of the data: classes or tags in order, or the names of the numbers."""
        if self.targets:
            return [*self.targets]
        return ordered({name for each in train for name in ((each,) if isinstance(each, str) else map(str, each))})


def number(place: str, column: str, text: str) -> float:
    """Return the number in a column of a row. Raises RecipeError if it is none, or not finite as float32."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not abs(found) <= _LARGEST:
        what = "a finite number" if not math.isfinite(found) else "a number that float32 holds"
        raise RecipeError(f"{place}: {column!r} is {text!r}, which is not {what}")
    return found


def label(place: str, value: str) -> str:
    """Return a label without blanks around it. Raises RecipeError if it is not valid."""
    found = value.strip()
    if why := flaw(found):
        raise RecipeError(f"{place}: {f'{found!r} is not a valid label: {why}' if found else 'the label is empty'}")
    return found


def ordered(labels: set[str]) -> list[str]:
    """Return labels sorted; if all are numbers, by value, the usual order in trained models.

    >>> ordered({"10", "9"}), ordered({"b", "a", "9"})
    (['9', '10'], ['9', 'a', 'b'])
    """
    return sorted(labels, key=int) if all(each.isdecimal() for each in labels) else sorted(labels)


def check_known(file: object, targets: Iterable[Target], labels: Sequence[str]) -> None:
    """Raises RecipeError for a tag that no training row has."""
    known = {*labels}
    for each in targets:
        if unknown := [name for name in each if isinstance(name, str) and name not in known]:
            raise RecipeError(f"{file} has the tag {unknown[0]!r}, which no training row has")


def as_tensor(targets: Sequence[Target], labels: Sequence[str]) -> "Tensor":
    """Return targets as the task wants them."""
    import torch

    places = {name: place for place, name in enumerate(labels)}
    if all(isinstance(each, str) for each in targets):
        return torch.tensor([places[str(each)] for each in targets])
    if all(isinstance(name, str) for each in targets for name in each):
        found = torch.zeros(len(targets), len(labels))
        for row, tags in zip(found, targets, strict=True):
            row[[places[str(tag)] for tag in tags]] = 1
        return found
    return torch.tensor(targets, dtype=torch.float32)
