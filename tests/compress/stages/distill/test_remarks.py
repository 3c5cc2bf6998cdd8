"""What `check` says of students that are much smaller than their teacher."""

import re

import pytest
from factories import edgepack, recipe_file

from edgepack.compress.stages import distill


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"compression": 4}, ""),
        ({"compression": 13}, ""),
        ({"compression": 13, "progressive": 0}, "each student has 13x fewer parameters .*: try progressive: 1"),
        ({"compression": 100, "progressive": 1}, "each student has 10x fewer parameters .*: try progressive: 3"),
        ({"compression": 60}, "60x fewer parameters are more than students usually bear, which is up to 16x"),
        ({"layers": 2}, ""),
    ],
)
def test_steps_that_are_too_large_are_told(settings: dict[str, float], said: str) -> None:
    found = " ".join(distill.remarks(distill.Config.model_validate(settings)))
    assert re.fullmatch(said, found)


def test_check_shows_them() -> None:
    stages = [{"train": {"epochs": 1}}, {"distill": {"compression": 60}}]
    ran = edgepack("check", str(recipe_file(stages=stages)))
    assert ran.code == 0, ran.err
    assert "note: distill: 60x fewer parameters are more than students usually bear" in ran.out
