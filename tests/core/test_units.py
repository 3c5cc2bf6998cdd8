"""Quantities with their unit in the value."""

import random

import pytest

from edgepack.core.units import DURATION, NUMBER, SHARE, SIZE, Quantity


@pytest.mark.parametrize(
    ("quantity", "text", "value"),
    [
        (SIZE, "600 kB", 600_000),
        (SIZE, "600kB", 600_000),
        (SIZE, " 1.5 MiB ", 1.5 * 2**20),
        (SIZE, "1 KiB", 1024),
        (SIZE, "0 B", 0),
        (SIZE, ".5 GB", 5e8),
        (DURATION, "8 ms", 8),
        (DURATION, "250 us", 0.25),
        (DURATION, "250 \N{MICRO SIGN}s", 0.25),
        (DURATION, "250 \N{GREEK SMALL LETTER MU}s", 0.25),
        (DURATION, "250\N{GREEK SMALL LETTER MU}s", 0.25),
        (DURATION, "1.5 s", 1500),
        (DURATION, "2 min", 120_000),
        (SHARE, "97 %", 0.97),
        (SHARE, "99.5%", 0.995),
        (SHARE, "100 %", 1.0),
    ],
)
def test_a_quantity_is_a_number_with_its_unit(quantity: Quantity, text: str, value: float) -> None:
    assert quantity.parse(text) == value


@pytest.mark.parametrize(
    ("quantity", "value", "why"),
    [
        (SIZE, 600_000, '600000 has no unit: write "600 kB"'),
        (SIZE, "600000", "'600000' has no unit"),
        (SIZE, "600 kb", "did you mean kB or KiB?"),
        (SIZE, "600 mb", "did you mean MB or MiB?"),
        (SIZE, "5 ms", "unknown unit 'ms'"),
        (SIZE, "1e3 kB", "is not a size"),
        (SIZE, "1 000 kB", "is not a size"),
        (SIZE, "1,5 MB", "1,5 MB"),
        (SIZE, "kB", "is not a size"),
        (SIZE, "", "is not a size"),
        (SIZE, None, "is not a size"),
        (SIZE, ["1 kB"], "is not a size"),
        (SIZE, "nan kB", "is not a size"),
        (DURATION, "8 MS", "did you mean ms?"),
        (DURATION, 8.0, "8.0 has no unit"),
        (SHARE, 0.5, "0.5 has no unit"),
        (SHARE, "0.5", "has no unit"),
        (SHARE, "95 percent", "unknown unit 'percent'"),
        (SIZE, float("inf"), 'inf is not finite: write a size as "600 kB"'),
        (SIZE, f"{'9' * 400} B", "is not finite"),
        (NUMBER, float("nan"), 'nan is not finite: write a number as "0.05"'),
        (NUMBER, 10**400, "is not finite"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(quantity: Quantity, value: object, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        quantity.parse(value)
    assert why in str(caught.value)


@pytest.mark.parametrize("quantity", [SIZE, DURATION, SHARE], ids=lambda quantity: str(quantity.name))
def test_the_exact_text_parses_back_to_the_same_value(quantity: Quantity) -> None:
    chance = random.Random(0)
    for _ in range(500):
        value = quantity.parse(f"{chance.uniform(0, 2000):.{chance.randrange(6)}f} {chance.choice([*quantity.units])}")
        assert quantity.parse(quantity.exact(value)) == pytest.approx(value, rel=1e-11, abs=1e-12)


@pytest.mark.parametrize(
    ("quantity", "value", "text"),
    [
        (SIZE, 0, "0 B"),
        (SIZE, 999, "999 B"),
        (SIZE, 1500, "1.5 kB"),
        (SIZE, 44_740_040, "44.7 MB"),
        (SIZE, 600_000, "600 kB"),
        (DURATION, 0.0125, "12.5 us"),
        (DURATION, 2, "2 ms"),
        (DURATION, 61_000, "61 s"),
        (SHARE, 0.9512, "95.1 %"),
        (SHARE, 1, "100 %"),
        (SHARE, 0, "0 %"),
        (SHARE, -0.01, "-1 %"),
        (SIZE, 999_999, "1 MB"),
        (DURATION, 0.99996, "1 ms"),
    ],
)
def test_people_read_three_digits(quantity: Quantity, value: float, text: str) -> None:
    assert quantity.format(value) == text
