"""What a user's function reads besides what it names is seen, told, and part of the key."""

import importlib
import importlib.metadata
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from factories import at_work, device, recipe
from PIL import Image
from torch import nn

import edgepack
from edgepack.config.user_code import reads
from edgepack.core.events import Emit, Event, Note
from edgepack.workflows.build.planning.planner import plan
from edgepack.workflows.build.steps import dry_run
from edgepack.workflows.build.store import Store


@pytest.fixture(autouse=True)
def apart() -> Iterator[None]:
    path, before = [*sys.path], {*sys.modules}
    yield
    sys.path[:] = path
    for name in {*sys.modules} - before:
        if name.startswith("own_"):
            del sys.modules[name]


def read(act: Callable[[], object], *covered: str) -> list[str]:
    with reads.watched([Path(each) for each in covered]) as seen:
        act()
    return seen()


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
        lambda: numpy.load("data/a.npy", mmap_mode="r+"),
        lambda: numpy.memmap("data/a.npy"),
        lambda: Path("data/a.npy").open("a+").close(),
        lambda: numpy.fromfile("data/a.npy", "uint8"),
        lambda: torch.from_file("data/a.npy", size=4),
    ],
)
def test_what_is_read_in_any_way_is_seen(act: Callable[[], object]) -> None:
    Path("data").mkdir()
    numpy.save("data/a.npy", numpy.ones(3))
    assert read(act) == ["data/a.npy"]
    assert read(act, "data/a.npy") == []


def test_weights_pictures_and_tables_are_seen() -> None:
    before = torch.jit.load, torch.from_file, os.environ
    torch.save({"w": torch.ones(1)}, "w.pt")
    Image.new("RGB", (2, 2)).save("p.png")
    safetensors.torch.save_file({"w": torch.ones(1)}, "w.safetensors")
    torch.jit.script(nn.Linear(2, 2)).save("j.pt")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), "e.pt2")
    with closing(sqlite3.connect("q.db")) as table:
        table.execute("create table t(a)")
    assert read(lambda: torch.load("w.pt")) == ["w.pt"]
    assert read(lambda: Image.open("p.png").load()) == ["p.png"]
    assert read(lambda: safetensors.torch.load_file("w.safetensors")) == ["w.safetensors"]
    assert read(lambda: safetensors.numpy.load_file("w.safetensors")) == ["w.safetensors"]
    assert read(lambda: torch.jit.load("j.pt")) == ["j.pt"]
    assert read(lambda: torch.export.load("e.pt2")) == ["e.pt2"]
    assert read(lambda: sqlite3.connect("q.db").close()) == ["q.db"]
    assert read(lambda: sqlite3.connect("file:q.db?mode=ro", uri=True).close()) == ["q.db"]
    assert (torch.jit.load, torch.from_file, os.environ) == before


def test_weights_are_seen_by_whatever_module_they_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by transformers, which has a name of its own for what safetensors opens files with."""
    safetensors.torch.save_file({"w": torch.ones(1)}, "w.safetensors")
    library = ModuleType("library")
    library.safe_open = safetensors.safe_open  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "library", library)

    def act() -> None:
        with library.safe_open("w.safetensors", "pt") as file:
            assert file.get_tensor("w").item() == 1

    assert read(act) == ["w.safetensors"]
    assert library.safe_open is safetensors.safe_open


def test_what_is_installed_or_made_by_the_function_is_left_out() -> None:
    for path in map(Path, ("venv/lib/site-packages/x.json", "made")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")

    def act() -> None:
        Path("made").write_text("what it makes is its own")
        for path in ("venv/lib/site-packages/x.json", "made", "/proc/cpuinfo", "/dev/null"):
            Path(path).read_text()
        importlib.import_module("edgepack.measure.divergence")

    assert read(act) == []


@pytest.mark.parametrize("path", [".cache/x", "dist/x", "../elsewhere/x"])
def test_wherever_else_it_lies_it_counts(path: str, tmp_path: Path) -> None:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("x")
    expected = str(tmp_path.parent / "elsewhere/x") if path.startswith("..") else path
    assert read(lambda: file.read_text()) == read(lambda: file.resolve().read_text()) == [expected]


def test_code_that_is_imported_by_a_name_made_up_is_seen_even_when_it_was_compiled_before() -> None:
    Path("own_late.py").write_text("")
    sys.path.insert(0, str(Path.cwd()))
    for _ in range(2):
        assert read(lambda: importlib.import_module("own_late")) == ["own_late.py"]
        del sys.modules["own_late"]


def test_names_in_a_folder_are_read_where_it_is_listed() -> None:
    Path("parts").mkdir()
    sys.path.insert(0, str(Path.cwd()))
    for act in (lambda: os.listdir("parts"), lambda: [*os.scandir("parts")], lambda: [*Path("parts").glob("*.bin")]):  # noqa: PTH208
        assert read(act) == ["parts/"]
    assert read(lambda: importlib.metadata.version("torch")) == []  # which lists the folders that modules are in
    before = reads.now(["parts/"], of="test")
    Path("parts/.hidden").touch()
    assert reads.now(["parts/"], of="test") == before
    Path("parts/a.bin").touch()
    assert reads.now(["parts/"], of="test") != before


def test_variables_that_the_users_code_asks_for_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_WIDTH", "8")
    asked: list[Callable[[], object]] = [
        lambda: os.environ["OWN_WIDTH"],
        lambda: os.environ.get("OWN_WIDTH"),
        lambda: os.getenv("OWN_WIDTH"),
        lambda: "OWN_WIDTH" in os.environ,
    ]
    for act in asked:
        assert read(act) == ["$OWN_WIDTH"]
    for act in (
        lambda: os.environ.get("OWN_TOKEN"),
        lambda: {**os.environ},
        os.environ.copy,
        lambda: os.environ.update(OWN_MADE="1") or os.environ["OWN_MADE"],
    ):
        assert read(act) == []
    assert read(lambda: os.environ.get("OWN_NONE")) == ["$OWN_NONE"]
    before = reads.now(["$OWN_WIDTH", "$OWN_NONE"], of="test")
    assert before["$OWN_NONE"] == "" and before["$OWN_WIDTH"] != "8"
    monkeypatch.setenv("OWN_WIDTH", "")
    assert reads.now(["$OWN_WIDTH"], of="test")["$OWN_WIDTH"] not in ("", before["$OWN_WIDTH"])
    monkeypatch.delenv("OWN_MADE", raising=False)


NET = """
from pathlib import Path
from types import ModuleType
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


def test_a_build_tells_what_its_functions_read_until_it_is_named() -> None:
    Path("own_net.py").write_text(NET)
    Path("own_data.py").write_text(DATA)
    for name in ("sizes.txt", "width.txt"):
        Path(name).write_text("8")
    numpy.savez("own.npz", x=numpy.zeros((4, 1, 8, 8), "float32"), y=numpy.arange(4))
    function = {"function": "own_data:load", "shape": [1, 8, 8], "labels": list("abcdefghij")}

    def notes(**files: list[str]) -> list[str]:
        sys.modules.pop("own_net", None)
        model: dict[str, Any] = {"python": "own_net:make", "files": files.get("model", [])}
        data = {"python": {**function, "files": files.get("data", [])}}
        work = at_work(recipe(model=model, data=data, stages=["train"]), device(), Store("store"))
        events: list[Event] = []
        work.emit = events.append
        dry_run.untrained(work)
        assert len(work.data.test) == 4
        texts = [each.text for each in events if isinstance(each, Note)]
        assert work.user_reads == [text for text in texts if " reads " in text]  # the others are of the few samples
        return work.user_reads

    unnamed = "not named in `files`"
    first, second = notes()
    assert first.startswith(f"the model's function reads 2 things that are {unnamed}, as sizes.txt: when one")
    assert second.startswith(f"the data's function reads own.npz, which is {unnamed}: when that changes")
    assert notes(model=["*.txt"], data=["own.npz"]) == []


WIDE = """
import os
from pathlib import Path
from types import ModuleType
import numpy
from safetensors.numpy import load_file
from torch import nn
def make():
    width = int(os.environ.get("OWN_WIDTH", "4")) + int(Path(os.environ["OWN_ELSEWHERE"], "more.txt").read_text())
    width += int(numpy.memmap("width.dat", dtype="int32")[0]) + int(load_file("w.safetensors")["w"][0])
    width += len(list(Path("parts").iterdir()))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


def test_what_a_function_reads_changes_the_model_in_the_next_build(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of Linear(64, n) and Linear(n, 10): 75 n + 10. Everything but the model is as it was."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("OWN_ELSEWHERE", str(elsewhere))
    monkeypatch.delenv("OWN_WIDTH", raising=False)
    Path("own_wide.py").write_text(WIDE)
    Path("parts").mkdir()

    def set_to(more: int, wide: int, weight: int) -> None:
        (elsewhere / "more.txt").write_text(str(more))
        numpy.array([wide], "int32").tofile("width.dat")
        safetensors.numpy.save_file({"w": numpy.array([weight], "int32")}, "w.safetensors")

    def planned() -> str:
        steps = plan(what, where, Store("store")).steps
        assert {step.cached for step in steps if step.kind == "candidate"} == {not steps[0].reason}
        return steps[0].reason

    def built(emit: Emit = lambda event: None) -> int:
        again = edgepack.build(what, where, Store("store"), dist="dist", emit=emit)
        assert again.exit_code == 0
        return again.ledger[-1].parameters

    data = {"digits": {"size": 8}}
    train = {"train": {"epochs": 1}}
    budgets = {"size": "10 MB"}
    what = recipe(model={"python": "own_wide:make"}, data=data, stages=[train], export=["onnx"], budgets=budgets)
    where = device(runner="ssh")  # cannot be reached, and nothing is timed
    set_to(1, 2, 3)
    assert planned() == "first time"
    assert built() == 75 * 10 + 10
    assert planned() == ""
    changes: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("width.dat", lambda: set_to(1, 12, 3), lambda: set_to(1, 2, 3)),
        (f"{elsewhere}/more.txt", lambda: set_to(2, 2, 3), lambda: set_to(1, 2, 3)),
        ("w.safetensors", lambda: set_to(1, 2, 4), lambda: set_to(1, 2, 3)),
        ("$OWN_WIDTH", lambda: monkeypatch.setenv("OWN_WIDTH", "8"), lambda: monkeypatch.delenv("OWN_WIDTH")),
        ("parts/", lambda: Path("parts/one").touch(), lambda: Path("parts/one").unlink()),
    ]
    for name, change, change_back in changes:
        change()
        assert planned() == f"{name} changed"
        change_back()
        assert planned() == ""
    for _, change, _ in changes[3:]:
        change()
    set_to(2, 12, 4)

    def meanwhile(event: Event) -> None:
        if getattr(event, "name", "") == "evaluate onnx":
            set_to(2, 13, 4)

    assert built(meanwhile) == 75 * (8 + 2 + 12 + 4 + 1) + 10
    assert planned() == "width.dat changed"
    set_to(2, 12, 4)
    assert planned() == ""
