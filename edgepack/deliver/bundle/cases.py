"""The self-test samples of a bundle, as its files describe them."""

from typing import Any, Literal

from pydantic import Field

from edgepack.core.frozen import Frozen
from edgepack.deliver.bundle.manifest import PrintableText


class Case(Frozen):
    """One sample: its inputs, its raw text if it is a text, and the logits of each format at build time."""

    inputs: tuple[PrintableText, ...]
    target: int
    expected: dict[str, tuple[float, ...]]
    text: PrintableText | None = None


class Tolerance(Frozen):
    """How close outputs must be: the same decision, and logits that differ by at most this share of their range."""

    decision: Literal["equal"]
    logits: float = Field(ge=0)


class Cases(Frozen):
    cases: tuple[Case, ...]
    byte_order: Literal["little"]
    tolerance: Tolerance
    not_run: dict[str, str] = {}  # formats that could not be run at build time, and why: they have no expected logits


class Input(Frozen):
    name: PrintableText
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64", "int32", "uint8"]


class Interface(Frozen):
    inputs: tuple[Input, ...] = Field(min_length=1)
    outputs: Any
    preprocessing: dict[str, Any]
