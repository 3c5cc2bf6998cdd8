"""The self-test samples of a bundle, as its files describe them."""

from typing import Any, Literal

from pydantic import Field

from edgepack.core.frozen import Frozen
from edgepack.deliver.bundle.manifest import PrintableText
from edgepack.records.generated import Generated


class Case(Frozen):
    """One sample: its inputs, its raw text if it is a text, and the outputs of each format at build time.

    These are the numbers of a model's only output; else of each output, or the name of a file with them as float32.
    Of files that write text, what each wrote after the sample's beginning too.
    """

    inputs: tuple[PrintableText, ...]
    target: Any = None
    expected: dict[str, tuple[float, ...] | dict[str, tuple[float, ...] | PrintableText]]
    text: PrintableText | None = None
    generated: dict[str, Generated] = {}


class Tolerance(Frozen):
    """How close outputs must be: for a classification the same decision, else this agreement in the sense of the task;
    and numbers that differ by at most a share of the range of their output, unless agreement alone is given.
    """

    decision: Literal["equal"] | None = None
    logits: float | None = Field(default=None, ge=0)
    agreement: float = Field(default=1, ge=0, le=1)
    outputs: float | None = Field(default=None, ge=0)

    @property
    def share(self) -> float | None:
        alone = None if "agreement" in self.model_fields_set else 0.0
        return next((each for each in (self.outputs, self.logits) if each is not None), alone)


class Cases(Frozen):
    cases: tuple[Case, ...]
    byte_order: Literal["little"]
    tolerance: Tolerance
    not_run: dict[str, str] = {}  # formats that could not be run at build time, and why: they have no expected logits


class Input(Frozen):
    name: PrintableText
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64", "int32", "uint8"]


class Output(Frozen):
    name: PrintableText
    shape: tuple[int, ...]
    dtype: Literal["float32"]


class Interface(Frozen):
    inputs: tuple[Input, ...] = Field(min_length=1)
    outputs: tuple[Output, ...] = Field(min_length=1)
    preprocessing: dict[str, Any]
