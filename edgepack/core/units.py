"""Quantities with their unit in the value: "180 kB", "8 ms", "97 %", to numbers and back.

A bare number is an error, and kB (1000 bytes) and KiB (1024 bytes) differ, so a budget never means two things.
"""

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_MICRO, _MU = "\N{MICRO SIGN}", "\N{GREEK SMALL LETTER MU}"  # keyboards have one or the other, and they look the same
_TEXT = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*(\S*)\s*")


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A kind of quantity. Values are floats in the base unit, the one with factor 1.

    >>> SIZE.parse("1.5 kB"), SIZE.format(1500)
    (1500.0, '1.5 kB')
    """

    name: str
    units: dict[str, float]
    shown: tuple[str, ...]  # units used for output, smallest first
    example: str

    def parse(self, value: object) -> float:
        """Return the value in the base unit. Raises ValueError naming the allowed forms."""
        if isinstance(value, str) and (match := _TEXT.fullmatch(value)):
            number, unit = float(match[1]), match[2].replace(_MU, _MICRO)
            if unit in self.units:
                return self._finite(round(number * self.units[unit], 12), value)
            raise ValueError(self._wrong_unit(value, unit))
        given = "nothing" if value is None else repr(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = self._finite(value, value)
            if "" in self.units:
                return number
            raise ValueError(f"{given} has no unit: write {self.suggest(value)}")
        raise ValueError(f"{given} is not {self.name}: write it as {self.example}")

    def _finite(self, number: float, given: object) -> float:
        """Return the number. Raises ValueError for .inf and .nan: as limits they would pass everything, or nothing."""
        with suppress(OverflowError):  # an integer of 309 or more digits
            if math.isfinite(number):
                return float(number)
        raise ValueError(f"{given!s:.40} is not finite: write {self.name} as {self.example}")

    def suggest(self, number: float) -> str:
        """Return the number with the unit that was most likely meant.

        >>> SHARE.suggest(0.5), SIZE.suggest(300), SIZE.suggest(600_000)
        ('"50 %"', '"300 kB"', '"600 kB"')
        """
        likely = self.example.split('"')[1].split()[1]
        if number >= self.units[likely] > 1:  # a number of bytes
            return f'"{self.exact(number)}"'
        scaled = number / self.units[likely] if self.units[likely] < 1 and abs(number) <= 1 else number
        return f'"{scaled:.12g} {likely}"'

    def _wrong_unit(self, value: str, unit: str) -> str:
        if "" in self.units:
            return f"{value!r} is not {self.name}: write it without a unit, as {self.example}"
        allowed = ", ".join(self.units)
        if not unit:
            return f"{value!r} has no unit: write {self.suggest(float(value))}"
        same = [known for known in self.units if known.lower().replace("i", "") == unit.lower().replace("i", "")]
        hint = f": did you mean {' or '.join(same)}?" if same else ""
        return f"unknown unit {unit!r} in {value!r}{hint} (allowed: {allowed})"

    def format(self, value: float, digits: int = 3) -> str:
        """Return short text for people, with three significant digits.

        >>> SIZE.format(999_999), DURATION.format(0.0612)
        ('1 MB', '61.2 us')
        """
        rounded = float(f"{value:.{digits}g}")  # before the unit is chosen: 999,999 B are 1 MB, not 1000 kB
        factor, unit = self._scale(rounded)
        return f"{rounded / factor:.12g} {unit}".rstrip()

    def exact(self, value: float) -> str:
        """Return text that parses back to the same value."""
        factor, unit = self._scale(value)
        return f"{round(value / factor, 12):.12g} {unit}".rstrip()

    def _scale(self, value: float) -> tuple[float, str]:
        unit = next((u for u in reversed(self.shown) if abs(value) >= self.units[u]), self.shown[0])
        return self.units[unit], unit


SIZE = Quantity(
    name="a size",
    units={"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    shown=("B", "kB", "MB", "GB"),
    example='"600 kB" or "1.5 MiB"',
)
DURATION = Quantity(
    name="a duration",
    units={"us": 1e-3, f"{_MICRO}s": 1e-3, "ms": 1, "s": 1e3, "min": 6e4},
    shown=("us", "ms", "s"),
    example='"8 ms"',
)
SHARE = Quantity(name="a percentage", units={"%": 0.01}, shown=("%",), example='"95 %"')
NUMBER = Quantity(name="a number", units={"": 1}, shown=("",), example='"0.05"')  # for values without a unit: logits


def _field(quantity: Quantity) -> tuple[Any, ...]:
    schema = {"type": "string", "description": f"{quantity.name} with its unit, as {quantity.example}"}
    return (
        BeforeValidator(quantity.parse),
        PlainSerializer(quantity.exact, when_used="json"),
        WithJsonSchema(schema),
    )


Size = Annotated[float, *_field(SIZE)]  # bytes
Duration = Annotated[float, *_field(DURATION)]  # milliseconds
Share = Annotated[float, *_field(SHARE)]  # 0.95 is 95 %
