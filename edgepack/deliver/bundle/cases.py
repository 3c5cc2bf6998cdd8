"""The self-test samples of a bundle, as its files describe them."""

from typing import Any, Literal

from pydantic import Field

from edgepack.core.frozen import Frozen
from edgepack.deliver.bundle.manifest import PrintableText


class Case(Frozen):
    """One sample: its inputs, its raw text where it is one, and what each format answered when it was built."""

    inputs: tuple[PrintableText, ...]
    target: int
    expected: dict[str, tuple[float, ...]]
    text: PrintableText | None = None


class Tolerance(Frozen):
    """How close an answer must come: the same decision, and logits no further away than this share of their range."""

    decision: Literal["equal"]
    logits: float = Field(ge=0)


class Cases(Frozen):
    cases: tuple[Case, ...]
    byte_order: Literal["little"]
    tolerance: Tolerance
    not_run: dict[str, str] = {}  # each format that could not be run where it was built, and why: it has no answers


class Input(Frozen):
    name: PrintableText
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64", "int32", "uint8"]


class Interface(Frozen):
    inputs: tuple[Input, ...] = Field(min_length=1)
    outputs: Any
    preprocessing: dict[str, Any]
