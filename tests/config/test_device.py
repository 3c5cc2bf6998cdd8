"""Where a bundle must run."""

from pathlib import Path
from typing import Any

import pytest
from factories import device

from edgepack.config.device import all_devices, load_device
from edgepack.core.errors import RecipeError


def test_a_profile_has_an_id_a_name_and_defaults() -> None:
    board = device("board")
    assert (board.id, board.name, board.runner.name) == ("board", "the board", "host")
    assert (board.controls.threads, board.quantization.channel_multiple) == (None, 8)


def test_what_a_profile_says_is_kept() -> None:
    board = device(controls={"threads": 2}, quantization={"channel_multiple": 16})
    assert (board.controls.threads, board.quantization.channel_multiple) == (2, 16)


def test_a_device_is_named_by_id_or_by_file() -> None:
    board = device("board")
    assert load_device("board") == load_device("devices/board.yaml") == board


def test_the_shipped_profiles_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_device("host").id == "host"


def test_a_profile_of_the_project_wins_over_a_shipped_one() -> None:
    assert device("host").name == "the host"
    assert all_devices()["host"] == Path("devices/host.yaml")
    assert load_device("host").name == "the host"


def test_an_unknown_device_says_which_there_are() -> None:
    device("board")
    with pytest.raises(RecipeError, match=r"unknown device 'bord': did you mean .board.\? \(allowed: .*board, .*host"):
        load_device("bord")


def test_the_resolved_profile_is_the_same_profile(own_place: Path) -> None:
    from edgepack.deliver.bundle.rendering import as_yaml

    board = device(controls={"threads": 1})
    Path("again.yaml").write_bytes(as_yaml(board.plain()))
    assert load_device("again.yaml").plain() == board.plain()


@pytest.mark.parametrize(
    ("profile", "features", "saturates"),
    [
        ({}, "avx2 fma", True),
        ({}, "avx2 avx_vnni", False),
        ({}, "asimd asimddp", False),
        ({}, "", False),  # not reached yet
        ({"cpu": {"name": "N100", "architecture": "x86_64", "features": ["avx_vnni"]}}, "avx2 fma", False),
        ({"cpu": {"name": "Cortex-A55", "architecture": "aarch64"}}, "avx2 fma", False),  # this computer stands in
        ({"quantization": {"int8_saturates": False}}, "avx2 fma", False),
        ({"quantization": {"int8_saturates": True}}, "avx2 avx_vnni", True),
    ],
)
def test_whether_int8_saturates_is_up_to_the_profile_then_to_the_processor(
    profile: dict[str, Any], features: str, saturates: bool
) -> None:
    settled = device(**profile).settled({"features": features})
    assert settled.quantization.int8_saturates is saturates
