"""Define how small a model must become: `target: {params: 60 %}`, `{macs: 400000}`, `{size: 600 kB}`.

A share is of the model as it comes to the stage. A whole number without a unit is a count of parameters or MACs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema, model_serializer, model_validator
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from edgepack.core.frozen import Frozen
from edgepack.core.units import DURATION, SHARE, SIZE, Quantity

Metric = Literal["params", "macs", "size", "latency"]


@dataclass(frozen=True, kw_only=True)
class Amount:
    """A share of the current value, or an absolute amount: a count, bytes or milliseconds."""

    value: float
    is_share: bool


def _count(value: object) -> Amount:
    if isinstance(value, Amount):
        return value
    if isinstance(value, str) and "%" in value:
        return _share(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return Amount(value=_positive(value, value), is_share=False)
    raise ValueError(f'{value!r} is neither a percentage nor a count: write it as "60 %" or 400000')


def _share(text: str) -> Amount:
    value = SHARE.parse(text)
    if not 0 < value < 1:
        raise ValueError(f"a target is the fraction that is left, above 0 % and below 100 %, got {SHARE.format(value)}")
    return Amount(value=value, is_share=True)


def _quantity(quantity: Quantity) -> Callable[[object], Amount]:
    def parse(value: object) -> Amount:
        if isinstance(value, Amount):
            return value
        if isinstance(value, str) and value.rstrip().endswith("%"):
            return _share(value)
        return Amount(value=_positive(quantity.parse(value), value), is_share=False)

    return parse


def _positive(number: float, given: object) -> float:
    if number <= 0:
        raise ValueError(f"a target is the amount that is left, above 0, got {given}")
    return number


def _plain(quantity: Quantity | None) -> Callable[[Amount | None], str | int | None]:
    """Write it as in a recipe."""

    def text(amount: Amount | None) -> str | int | None:
        if amount is None:
            return None
        if amount.is_share:
            return SHARE.exact(amount.value)
        return quantity.exact(amount.value) if quantity else int(amount.value)

    return text


def _field(quantity: Quantity | None, what: str) -> tuple[Any, ...]:
    shapes = {"anyOf": [{"type": "string"}, {"type": "integer"}]} if quantity is None else {"type": "string"}
    return (
        BeforeValidator(_quantity(quantity) if quantity else _count),
        PlainSerializer(_plain(quantity), when_used="json"),
        WithJsonSchema({**shapes, "description": f'{what}, or a percentage of the current model, such as "60 %"'}),
    )


class Target(Frozen):
    """One metric, and the most of it that may be left.

    >>> Target.of(params="60 %").limit(1000), Target.of(macs=400).limit(1000)
    (600.0, 400)
    """

    params: Annotated[Amount, *_field(None, "number of parameters, such as 400000")] | None = None
    macs: Annotated[Amount, *_field(None, "multiply-accumulates of one inference, such as 400000")] | None = None
    size: Annotated[Amount, *_field(SIZE, f"bytes of the weights, such as {SIZE.example}")] | None = None
    latency: Annotated[Amount, *_field(DURATION, f"time of one inference, such as {DURATION.example}")] | None = None

    @classmethod
    def of(cls, **wanted: object) -> "Target":
        """Make a target from its metric, written as in a recipe: Target.of(params="60 %"). Raises ValidationError."""
        return cls.model_validate(wanted)

    @model_validator(mode="after")
    def _one(self) -> "Target":
        given = [name for name in Target.model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"a target is exactly one of {', '.join(Target.model_fields)}, got {got}")
        return self

    @model_serializer(mode="wrap")
    def _given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}

    @property
    def metric(self) -> Metric:
        names: tuple[Metric, ...] = ("params", "macs", "size", "latency")
        return next(name for name in names if getattr(self, name) is not None)

    def limit(self, now: float) -> float:
        """Return the most that may be left if the current value is `now`."""
        amount = self._amount
        return amount.value * now if amount.is_share else amount.value

    def words(self) -> str:
        """
        >>> Target.of(params="60 %").words(), Target.of(macs=400_000).words(), Target.of(size="600 kB").words()
        ('60 % of the parameters', '400,000 MACs', 'a size of 600 kB')
        """
        share = SHARE.exact(self._amount.value) if self._amount.is_share else ""
        return f"{share} of the {NOUNS[self.metric]}" if share else self.tell(self._amount.value)

    def tell(self, value: float) -> str:
        """Format a value of this metric: "412,300 parameters", "a size of 620 kB"."""
        quantity = {"size": SIZE, "latency": DURATION}.get(self.metric)
        if quantity:
            return f"a {self.metric} of {quantity.format(value)}"
        return f"{round(value):,} {NOUNS[self.metric]}"

    @property
    def _amount(self) -> Amount:
        amount: Amount = getattr(self, self.metric)
        return amount


NOUNS: dict[Metric, str] = {"params": "parameters", "macs": "MACs", "size": "size", "latency": "latency"}
