"""What was built before: all of an entry or nothing, whatever happens to the process or the disk."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from factories import Ran, edgepack, entry, python, recipe_file

from edgepack.core.errors import DeviceError, ExitCode
from edgepack.core.files import digest, write_atomic
from edgepack.workflows.build.store import _HOST, Store

KEY = digest("a step")
DAY = 86_400.0


@pytest.fixture
def store(own_place: Path) -> Store:
    return Store(own_place / "store")


def _fill(folder: Path) -> dict[str, Any]:
    (folder / "weights.bin").write_text("some weights")
    return {"accuracy": 0.98}


def _last_used(store: Store, key: str, days_ago: float, now: float = 1.8e9) -> None:
    found = store.peek("candidate", key)
    assert found is not None
    os.utime(found.path / "record.json", (now - days_ago * DAY, now - days_ago * DAY))


def test_what_is_made_can_be_had_again(store: Store) -> None:
    made = store.make("candidate", KEY, {"plugin": "train"}, _fill)
    found = Store(store.root).get("candidate", KEY)
    assert found is not None
    assert found == made == store.peek("candidate", KEY)
    assert (found.outcome, found.ingredients) == ({"accuracy": 0.98}, {"plugin": "train"})
    assert (found.path / "weights.bin").read_text() == "some weights"
    assert found.bytes == len("some weights")


def test_what_was_never_made_is_not_there(store: Store) -> None:
    assert store.get("candidate", KEY) is None
    assert store.peek("candidate", KEY) is None
    assert store.entries() == ()
    entry(store)
    assert store.get("artifact", KEY) is None


def test_the_folder_explains_itself(store: Store) -> None:
    entry(store)
    assert "safe to delete" in (store.root / "README.txt").read_text()
    assert (store.root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_files_in_folders_are_kept_and_checked_too(store: Store) -> None:
    def fill(folder: Path) -> dict[str, Any]:
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "file").write_text("content")
        return {}

    made = store.make("candidate", KEY, {}, fill)
    assert store.get("candidate", KEY) is not None
    (made.path / "deep" / "er" / "file").write_text("changed")
    assert store.get("candidate", KEY) is None


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("weights.bin", lambda path: path.write_text("SOME weights")),
        ("weights.bin", lambda path: path.write_text("")),
        ("weights.bin", lambda path: path.write_text("some weights and more")),
        ("weights.bin", Path.unlink),
        ("record.json", _truncate),
        ("record.json", lambda path: path.write_text("")),
        ("record.json", lambda path: path.write_text("[]")),
        ("record.json", lambda path: path.write_bytes(b"\xff\xfe")),
        ("record.json", lambda path: path.write_text('{"made_at": 0, "ingredients": {}, "outcome": {}, "files": []}')),
        ("record.json", lambda path: path.write_text(path.read_text().replace("0.98", "0.99"))),
        ("record.json", Path.unlink),
    ],
    ids=[
        "changed",
        "emptied",
        "longer",
        "gone",
        "cut record",
        "empty record",
        "list",
        "not text",
        "odd",
        "edited record",
        "no record",
    ],
)
def test_a_damaged_entry_is_noticed_removed_and_can_be_made_again(
    file: str, damage: Callable[[Path], object], store: Store
) -> None:
    made = entry(store)
    damage(made.path / file)
    assert store.get("candidate", KEY) is None
    assert not made.path.exists()
    assert entry(store).outcome == made.outcome
    assert store.get("candidate", KEY) is not None


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_a_failure_is_never_stored(failure: BaseException, store: Store) -> None:
    def fill(folder: Path) -> dict[str, Any]:
        (folder / "half.bin").write_text("half")
        raise failure

    with pytest.raises(type(failure)):
        store.make("candidate", KEY, {}, fill)
    assert store.get("candidate", KEY) is None
    assert [*(store.root / "tmp").iterdir()] == []


def test_making_a_key_again_replaces_the_whole_entry(store: Store) -> None:
    entry(store, old="old", both="old")
    entry(store, both="new")
    found = store.get("candidate", KEY)
    assert found is not None
    assert {path.name: path.read_text() for path in found.path.glob("*.bin")} == {"both.bin": "new"}


# What a process does, told to a fresh Python: it dies by SIGKILL at one moment of making the entry.
_KILLED = """
    import os, signal, sys
    from pathlib import Path
    from edgepack.workflows.build import store as module

    moment, root, key = sys.argv[1:]
    die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)

    def fill(folder):
        (folder / "weights.bin").write_text("some weights")
        if moment == "while filling":
            die()
        return {"accuracy": 0.98}

    if moment == "before the record":
        module.write_atomic = die
    if moment == "while the record is written":
        os.fsync = die
    if moment == "before it appears":
        real = Path.replace
        Path.replace = lambda self, target: die() if "entries" in str(target) else real(self, target)
    module.Store(root).make("candidate", key, {"plugin": "train"}, fill)
    die()
"""


@pytest.mark.parametrize(
    ("moment", "readable"),
    [
        ("while filling", False),
        ("before the record", False),
        ("while the record is written", False),
        ("before it appears", False),
        ("after it appeared", True),
    ],
)
def test_a_kill_leaves_all_of_an_entry_or_nothing(moment: str, readable: bool, store: Store) -> None:
    assert python(dedent(_KILLED), moment, str(store.root), KEY).code == -signal.SIGKILL
    assert (store.get("candidate", KEY) is not None) is readable
    assert len(store.entries()) == readable
    with store.lock(KEY):
        entry(store)
    assert store.get("candidate", KEY) is not None
    store.collect(unused_days=1e6)
    assert [*(store.root / "tmp").iterdir()] == []
    assert len(store.entries()) == 1


# Two builds of one step: the first works until it is told that the second waits.
_BUILDER = """
    import sys, time
    from pathlib import Path
    from edgepack.workflows.build.store import Store

    me, other, root, key = sys.argv[1:]
    store, flags = Store(root), Path(root).parent

    def until(name):
        for _ in range(6000):
            if (flags / name).exists():
                return
            time.sleep(0.01)
        sys.exit("never came: " + name)

    def fill(folder):
        (flags / "working").touch()
        until("waiting")
        (folder / "by.txt").write_text(me)
        return {"by": me}

    if me == "second":
        until("working")
    with store.lock(key, waiting=lambda: (flags / "waiting").touch()):
        found = store.get("candidate", key) or store.make("candidate", key, {}, fill)
    print(found.outcome["by"])
"""


def test_two_processes_do_one_piece_of_work_once(store: Store) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def run(name: str) -> Ran:
        return python(dedent(_BUILDER), name, "other", str(store.root), KEY)

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(run, ["first", "second"])
    assert (first.out, second.out) == ("first\n", "first\n"), first.err + second.err


def test_a_lock_is_free_again_after_a_failure(store: Store) -> None:
    with pytest.raises(ValueError), store.lock(KEY):
        raise ValueError("the work failed")
    waited = []
    with store.lock(KEY, waiting=lambda: waited.append(True)):
        assert not waited


def test_gc_removes_what_was_not_used_lately(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1.8e9)
    for days in (1, 29, 31, 400):
        entry(store, digest(days))
        _last_used(store, digest(days), days)
    gone = store.collect(unused_days=30)
    assert {each.key for each in gone} == {digest(31), digest(400)}
    assert [each.key for each in store.entries()] == [digest(1), digest(29)]


def test_gc_removes_the_least_used_until_the_store_is_small(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1.8e9)
    for days in (3, 1, 2):
        entry(store, digest(days), weights="x" * 100)
        _last_used(store, digest(days), days)
    store.collect(unused_days=30, max_bytes=250)
    assert [each.key for each in store.entries()] == [digest(1), digest(2)]


def test_using_an_entry_keeps_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry(store)
    _last_used(store, KEY, 100)
    store.get("candidate", KEY)
    assert store.collect(unused_days=30) == ()


def _left(store: Store) -> Path:
    """What a killed build leaves; another process may have its number by now, on this computer or another."""
    folder = store.root / "tmp" / f"{KEY[:16]}-{os.getpid()}-00000000-{_HOST}"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_text("half")
    return folder


def test_gc_clears_what_killed_builds_left_and_nothing_that_is_being_written(store: Store) -> None:
    entry(store)
    half = store.root / "entries" / "candidate" / digest("half")
    half.mkdir()
    dead, gone, runs = (store.root / "plans" / f".x.json.{pid}.tmp" for pid in ("x", 2**22 + 1, os.getpid()))
    left = [_left(store), half, dead, gone]
    dead.parent.mkdir()
    for file in (dead, gone, runs):
        file.touch()

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "weights.bin").write_text("some weights")
        Store(store.root).collect(unused_days=30)
        return {}

    assert store.make("candidate", digest("another step"), {}, fill).files.keys() == {"weights.bin"}
    assert [path for path in left if path.exists()] == []
    assert runs.exists()
    assert store.get("candidate", KEY) is not None


def test_what_killed_builds_left_is_cleared_as_soon_as_something_is_made(store: Store) -> None:
    left = _left(store)
    entry(store)
    assert not left.exists()


def test_where_files_have_no_locks_what_a_running_process_writes_is_left_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", none)
    left = _left(store)
    dead = left.rename(left.with_name(f"{KEY[:16]}-{2**22 + 1}-00000000-{_HOST}"))
    left = _left(store)
    store.collect(unused_days=30)
    assert (left.exists(), dead.exists()) == (True, False)


def test_what_another_computer_is_writing_into_a_shared_store_is_left_alone(store: Store) -> None:
    """Neither its locks nor its processes can be seen from here."""
    left = _left(store)
    theirs = left.rename(left.with_name(f"{KEY[:16]}-1-00000000-another"))
    store.collect(unused_days=30)
    assert theirs.exists()


def test_a_file_in_the_way_is_a_clear_error(own_place: Path) -> None:
    (own_place / "store").write_text("not a folder")
    with pytest.raises(DeviceError, match=r"cannot write .*store.*\n.*move it, or name another folder"):
        entry(Store(own_place / "store"))


@pytest.mark.parametrize(
    ("number", "advice"), [(28, "the disk is full: free some space"), (30, "the disk is read-only"), (122, "quota")]
)
def test_a_disk_that_takes_no_more_is_a_clear_error(
    number: int, advice: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DeviceError, match=advice) as caught:
        entry(store)
    assert caught.value.code == ExitCode.DEVICE
    monkeypatch.undo()
    assert store.get("candidate", KEY) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_a_clear_error(own_place: Path) -> None:
    (own_place / "store").mkdir(mode=0o500)
    with pytest.raises(DeviceError, match="no permission"):
        entry(Store(own_place / "store"))


@pytest.mark.parametrize("option", ["--store", "--dist"])
def test_a_build_that_cannot_write_exits_4(option: str, own_place: Path) -> None:
    (own_place / "file").write_text("in the way")
    ran = edgepack("build", str(recipe_file()), option, "file/below")
    assert ran.code == ExitCode.DEVICE
    assert "cannot write" in ran.err
    assert "Traceback" not in ran.err


def test_a_file_is_written_whole_or_not_at_all(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own_place / "build.json"
    write_atomic(path, b"first")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write_atomic(path, b"second")
    assert path.read_bytes() == b"first"
    assert [each.name for each in own_place.glob("*build.json*")] == ["build.json"]


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})


def test_the_cache_is_listed_and_cleared_on_the_command_line(store: Store) -> None:
    entry(store)
    listed = edgepack("cache", "ls", "--store", str(store.root))
    assert KEY[:12] in listed.out
    assert "train" in listed.out
    assert "1 entries, 12 B" in listed.out
    assert edgepack("cache", "gc", "--store", str(store.root), "--max-size", "1 B").out == "removed 1 entries, 12 B\n"
    assert edgepack("cache", "gc", "--store", str(store.root), "--max-size", "1").code == ExitCode.USAGE


def test_a_record_says_what_the_entry_was_made_of(store: Store) -> None:
    record = json.loads((entry(store).path / "record.json").read_text())
    assert record["ingredients"] == {"plugin": "train"}
    assert record["files"].keys() == {"weights.bin"}


def test_whoever_holds_a_key_may_look_at_its_damaged_entry(store: Store) -> None:
    made = entry(store)
    (made.path / "weights.bin").write_text("damaged")
    with store.lock(KEY):
        assert store.get("candidate", KEY) is None
