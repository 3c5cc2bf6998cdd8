"""What was found in a folder is found out again as soon as anything in it changed, and not before."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgepack.core.files import DOWNLOADS
from edgepack.core.files.unchanged import one_look, remembered

ROOT = Path("pictures")


@pytest.fixture(autouse=True)
def _pictures() -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = ROOT / part / name / "inside"
            folder.mkdir(parents=True)
            (folder / "1.jpg").write_text(name)
    Path("elsewhere").mkdir()
    Path("elsewhere", "a.jpg").write_text("one")
    (ROOT / "train" / "cat" / "link").symlink_to(Path("elsewhere").absolute())


def _finder() -> tuple[Callable[[], int], list[int]]:
    """Ask what is found, which is a new number each time that it is looked for."""
    found: list[int] = []

    def find() -> int:
        found.append(len(found))
        return found[-1]

    return lambda: remembered(ROOT, "numbers", find), found


def _same_size_and_time(file: Path) -> None:
    times = file.stat()
    file.write_text(file.read_text().swapcase())
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


FILE = ROOT / "train" / "cat" / "inside" / "1.jpg"
CHANGES: dict[str, Callable[[], object]] = {
    "content": lambda: FILE.write_text("another"),
    "content of the same size and time": lambda: _same_size_and_time(FILE),
    "new file": lambda: (ROOT / "test" / "dog" / "2.jpg").write_text(""),
    "new file in a split": lambda: (ROOT / "train" / "loose.jpg").write_text(""),
    "new class": lambda: (ROOT / "train" / "cow").mkdir(),
    "gone": FILE.unlink,
    "renamed": lambda: FILE.rename(FILE.with_name("3.jpg")),
    "replaced": lambda: Path("elsewhere", "a.jpg").rename(FILE),
    "behind a link": lambda: Path("elsewhere", "a.jpg").write_text("two"),
    "broken link": lambda: (ROOT / "test" / "cat" / "broken.jpg").symlink_to("nowhere"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_any_change_is_noticed(change: Callable[[], object]) -> None:
    ask, found = _finder()
    assert [ask(), ask()] == [0, 0]
    change()
    assert [ask(), ask()] == [1, 1] and found == [0, 1]


def test_what_it_depends_on_besides_is_told_apart() -> None:
    assert remembered(ROOT, "one", lambda: 1) == 1
    assert remembered(ROOT, "two", lambda: 2) == 2
    assert remembered(ROOT, "one", lambda: 3) == 1


def test_a_command_looks_once() -> None:
    """So that one truth holds while it runs."""
    ask, _ = _finder()
    with one_look():
        assert ask() == 0
        FILE.write_text("another")
        assert ask() == 0
    assert ask() == 1


def test_nothing_is_remembered_of_an_error_nor_where_nothing_can_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        remembered(ROOT, "numbers", fail)
    ask, _ = _finder()
    assert ask() == 0
    monkeypatch.setenv("PATH", "")  # no find here
    assert [ask(), ask()] == [1, 2]


def test_a_loop_of_links_is_left_to_those_who_list_it() -> None:
    (ROOT / "train" / "cat" / "above").symlink_to(ROOT.absolute())
    ask, _ = _finder()
    assert [ask(), ask()] == [0, 1]


def test_a_damaged_memory_is_made_again() -> None:
    ask, _ = _finder()
    assert ask() == 0
    (memory,) = DOWNLOADS.glob("found-*.json")
    memory.write_text('{"state"')
    assert [ask(), ask()] == [1, 1]
