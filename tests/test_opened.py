"""A user's function that reads what no key covers is told, by name."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from factories import at_work, device, recipe
from PIL import Image

from edgepack import opened
from edgepack.events import Event, Note
from edgepack.store import Store


@pytest.fixture(autouse=True)
def apart() -> Iterator[None]:
    path, before = [*sys.path], {*sys.modules}
    yield
    sys.path[:] = path
    for name in {*sys.modules} - before:
        if name.startswith("own_"):
            del sys.modules[name]


def read(act: Callable[[], object], *covered: str) -> str:
    with opened.watched([Path(each) for each in covered]) as unnamed:
        act()
    return unnamed()


def load_array() -> object:
    return numpy.load("data/a.npy")


@pytest.mark.parametrize(
    "act",
    [
        lambda: Path("data/a.npy").read_bytes(),
        lambda: Path("data/a.npy").resolve().open("rb").close(),
        lambda: open(b"data/a.npy").close(),  # noqa: PTH123
        load_array,
        lambda: numpy.load("data/a.npy", mmap_mode="r"),
        lambda: numpy.fromfile("data/a.npy", "uint8"),
    ],
)
def test_what_is_read_in_any_way_is_told(act: Callable[[], object]) -> None:
    Path("data").mkdir()
    numpy.save("data/a.npy", numpy.ones(3))
    told = "reads data/a.npy, which is not named in `files`: when it changes, nothing is built again"
    assert read(act) == told
    assert read(act, "data/a.npy") == ""


def test_weights_and_pictures_are_seen() -> None:
    torch.save({"w": torch.ones(1)}, "w.pt")
    Image.new("RGB", (2, 2)).save("p.png")
    assert read(lambda: torch.load("w.pt")).startswith("reads w.pt, ")
    assert read(lambda: Image.open("p.png").load()).startswith("reads p.png, ")


def test_what_is_not_the_projects_is_not_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x"
    for path in (elsewhere, *map(Path, (".cache/x", "dist/x", "venv/lib/site-packages/x.json", "made"))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")

    def act() -> None:
        Path("made").write_text("what it makes is its own")
        for path in (".cache/x", "dist/x", "venv/lib/site-packages/x.json", "made", str(elsewhere), "/etc/hostname"):
            Path(path).read_text()
        importlib.import_module("edgepack.locate")

    assert read(act) == ""


def test_what_is_named_from_the_current_folder_or_lies_beside_the_code_is_the_projects(tmp_path: Path) -> None:
    folder = tmp_path.parent / f"{tmp_path.name}-beside"
    folder.mkdir()
    for name in ("net.py", "x.bin"):
        (folder / name).write_text("")
    assert read(lambda: (folder / "x.bin").read_bytes()) == ""
    assert read(lambda: (folder / "x.bin").read_bytes(), str(folder / "net.py")).startswith(f"reads {folder}/x.bin, ")
    assert "x.bin" in read(lambda: Path("..", folder.name, "x.bin").read_bytes())
    folder_again = read(lambda: [Path("..", folder.name, name).read_bytes() for name in ("x.bin", "net.py")])
    assert folder_again.startswith(f"reads 2 files that are not named in `files`, as {folder}/x.bin: when they change")


def test_code_that_is_imported_by_a_name_made_up_is_told_even_when_it_was_compiled_before() -> None:
    Path("own_late.py").write_text("")
    sys.path.insert(0, str(Path.cwd()))
    for _ in range(2):
        assert read(lambda: importlib.import_module("own_late")).startswith("reads own_late.py, ")
        del sys.modules["own_late"]


NET = """
from pathlib import Path
from torch import nn
Path("sizes.txt").read_text()
def make():
    Path("width.txt").read_text()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
DATA = """
import numpy
def load():
    made = numpy.load("own.npz")
    return {part: (made["x"], made["y"]) for part in ("train", "validation", "test")}
"""


def test_a_build_warns_of_files_that_its_functions_read_until_they_are_named() -> None:
    Path("own_net.py").write_text(NET)
    Path("own_data.py").write_text(DATA)
    for name in ("sizes.txt", "width.txt"):
        Path(name).write_text("8")
    numpy.savez("own.npz", x=numpy.zeros((4, 1, 8, 8), "float32"), y=numpy.arange(4))
    function = {"function": "own_data:load", "shape": [1, 8, 8], "labels": list("abcdefghij")}

    def warnings(**files: list[str]) -> list[str]:
        sys.modules.pop("own_net", None)
        model: dict[str, Any] = {"python": "own_net:make", "files": files.get("model", [])}
        data = {"python": {**function, "files": files.get("data", [])}}
        work = at_work(recipe(model=model, data=data, stages=["train"]), device(), Store("store"))
        events: list[Event] = []
        work.emit = events.append
        work._untrained()
        assert len(work.data.test) == 4
        told = [each.text for each in events if isinstance(each, Note)]
        assert [f"warning: {text}" for text in work.warned] == told
        return told

    unnamed = "not named in `files`"
    first, second = warnings()
    assert first.startswith(f"warning: the model's function reads 2 files that are {unnamed}, as sizes.txt: when they")
    assert second.startswith(
        f"warning: the data's function reads own.npz, which is {unnamed}: when it changes, nothing"
    )
    assert warnings(model=["*.txt"], data=["own.npz"]) == []
