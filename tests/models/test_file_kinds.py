"""What a file is, told from its bytes, and by `check` of a checkpoint before anything is loaded."""

from pathlib import Path

import pytest
import torch
from factories import edgepack, recipe_file
from safetensors.torch import save_file
from torch import nn

from edgepack.models.weights.file_kinds import not_weights, stand_in

_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


def _saved(name: str) -> bytes:
    net = nn.Linear(20, 20)
    if name == "saved.safetensors":
        save_file(dict(net.state_dict()), name)
    elif name == "scripted.pt":
        torch.jit.script(net).save(name)
    else:
        torch.save(net.state_dict(), name, _use_new_zipfile_serialization=name != "old.pth")
    return Path(name).read_bytes()


@pytest.mark.parametrize("name", ["saved.safetensors", "saved.pth", "old.pth"])
def test_of_a_whole_file_of_weights_nothing_is_told(name: str) -> None:
    _saved(name)
    assert not_weights(Path(name)) == ""


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("name", ["saved.safetensors", "saved.pth"])
def test_a_file_that_is_cut_off_is_told(name: str, share: float) -> None:
    content = _saved(name)
    Path(name).write_bytes(content[: max(12, int(share * len(content)))])
    assert not_weights(Path(name)).startswith("truncated")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (_LFS, "git lfs pull"), (b"<!DOCTYPE html><html>", "a web page"), (b"\x80\x02}q", "")],
    ids=["empty", "git-lfs", "a page", "a pickle"],
)
def test_what_stands_in_place_of_a_file_is_told(content: bytes, message: str) -> None:
    Path("weights.pth").write_bytes(content)
    assert message in stand_in(Path("weights.pth"))
    assert bool(message) == bool(stand_in(Path("weights.pth"))) == bool(not_weights(Path("weights.pth")))


def test_an_archive_of_torchscript_is_told() -> None:
    _saved("scripted.pt")
    assert "a TorchScript archive, which is code" in not_weights(Path("scripted.pt"))


@pytest.mark.parametrize("content", [b"", _LFS], ids=["empty", "git-lfs"])
def test_check_tells_a_checkpoint_that_is_none(content: bytes) -> None:
    Path("weights.pth").write_bytes(content)
    recipe_file("of-a-file", model={"torchvision": "resnet18", "checkpoint": "weights.pth"})
    ended = edgepack("check", "of-a-file")
    assert ended.code == 2
    assert "recipes/of-a-file.yaml:3" in ended.err
    assert stand_in(Path("weights.pth")) in ended.err


def test_a_checkpoint_that_may_not_be_read_is_a_mistake_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    Path("weights.pth").write_bytes(b"some")
    monkeypatch.setattr("edgepack.models.contract.not_weights", refuses)
    recipe_file("of-a-file", model={"torchvision": "resnet18", "checkpoint": "weights.pth"})
    ended = edgepack("check", "of-a-file")
    assert (ended.code, "cannot read 'weights.pth': Permission denied" in ended.err) == (2, True)
