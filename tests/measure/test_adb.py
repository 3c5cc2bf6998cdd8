"""An Android phone, by a stand-in for adb (adb_stand_in/): what is sent to it, what comes back, what can go wrong."""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy
import pytest
from factories import device

from edgepack.config.device import Device, load_device
from edgepack.core import provenance
from edgepack.core.errors import AbsentError, AnswerError, DeviceError, EdgepackError
from edgepack.measure import processes
from edgepack.measure.contract import connected, lacking
from edgepack.measure.runners import adb
from edgepack.measure.runners.adb import folder as adb_folder
from edgepack.measure.runners.adb import link
from edgepack.measure.timing import figures, protocol

SERIAL = "0A1B2C3D4E5F"
TESTS = Path(__file__).parent
ARM64 = b"\x7fELF\2\1\1" + bytes(9) + b"\3\0\xb7\0"
PROTOCOL = {
    "warm_up_seconds": 0.3,
    "seconds": 1.0,
    "least_runs": 30,
    "most_runs": 1000,
    "most_seconds": 20.0,
    "mode": "time",
}


class Stand:
    """The phone of a test: what is said of it, and what was done to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_(self, **what: object) -> None:
        """One file a fact; one that is None is gone."""
        for name, value in what.items():
            file = self.folder / "state" / name
            file.write_text(f"{value}\n") if value is not None else file.unlink()

    def tells(self, *, celsius: float = 31.2, thermal: int = 0, **properties: str) -> None:
        """What the phone says of itself, in the recorded format."""
        recorded = {name: (TESTS / "recorded/adb" / f"{name}.txt").read_text() for name in ("battery", "thermal")}
        props = (TESTS / "recorded/adb/getprop.txt").read_text()
        for name, value in properties.items():
            props = re.sub(rf"^\[{re.escape(name)}\].*$", f"[{name}]: [{value}]", props, flags=re.MULTILINE)
        battery = recorded["battery"].replace("  temperature: 312", f"  temperature: {round(celsius * 10)}")
        thermals = recorded["thermal"].replace("Thermal Status: 0", f"Thermal Status: {thermal}")
        self.is_(battery=battery, thermalservice=thermals, getprop=props)

    def left(self) -> list[Path]:
        return list((self.folder / "data/local/tmp").iterdir())

    def programs(self) -> list[list[str]]:
        """Each program that was started: its cores, its path, its arguments."""
        file = self.folder / "state/programs"
        return [line.split("\t") for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """A phone that is as it should be, and the programs for it."""
    phone, tools = tmp_path / "phone", tmp_path / "tools"
    for folder in (tools, phone / "data/local/tmp", phone / "state"):
        folder.mkdir(parents=True)
    (phone / "online").write_text("0-8\n")
    (phone / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    stand = Stand(phone)
    stand.tells()
    stand.is_(devices=f"{SERIAL}\tdevice", paces=20.0, returns="", log="")
    monkeypatch.setenv("PATH", f"{TESTS / 'adb_stand_in'}:{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("STAND_IN_PHONE", str(phone))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    here = provenance.versions("executorch", "onnxruntime")
    for name in ("executor_runner", "onnxruntime_perf_test"):
        (tools / name).write_bytes(ARM64 + b"\0XnnpackBackend\0")
    (tools / "libonnxruntime.so").write_bytes(ARM64 + f"VERS_{here['onnxruntime']}".encode() + b"\0")
    (tools / "version.txt").write_text(here["executorch"].partition("+")[0] + "\n")
    monkeypatch.setenv("EDGEPACK_EXECUTOR_RUNNER", str(tools / "executor_runner"))
    monkeypatch.setenv("EDGEPACK_ORT_PERF_TEST", str(tools / "onnxruntime_perf_test"))
    monkeypatch.setattr(processes.Host, "run", doubled)
    return stand


def doubled(_: processes.Host, job: dict[str, Any]) -> dict[str, Any]:
    """This computer's answers, as the stand-in gives them."""
    if job["mode"] == "delegates":
        return {"delegates": ["CoreMLBackend", "XnnpackBackend"]}
    rows = numpy.load(job["inputs"][0], allow_pickle=False)
    numpy.save(job["output"], rows * 2, allow_pickle=False)
    return {"rows": len(rows)}


def pixel(**more: Any) -> Device:
    return device("pixel-8", runner="adb", **{"controls": {"threads": 4, "cores": [4, 5, 6, 7]}, **more})


def a_model(name: str = "it's a model.pte") -> str:
    Path(name).write_bytes(b"ET12")
    return str(Path(name).absolute())


def job(runtime: str = "executorch", **more: Any) -> dict[str, Any]:
    return {**PROTOCOL, "runtime": runtime, "file": a_model(), **more}


def question(runtime: str = "executorch") -> dict[str, Any]:
    numpy.save("in.npy", numpy.arange(20, dtype="float32").reshape(5, 4), allow_pickle=False)
    files = {"inputs": ["in.npy"], "output": "out.npy", "rows": 5}
    return {"mode": "predict", "runtime": runtime, "file": a_model(), **files}


@contextlib.contextmanager
def fails(kind: type[EdgepackError], message: str) -> Iterator[None]:
    with pytest.raises(kind, match=message) as failure:
        yield
    assert failure.value.hint and SERIAL not in str(failure.value)
    assert failure.value.code == (1 if kind is AnswerError else 4)


def test_the_facts_are_what_a_timing_depends_on_and_name_nobody(stand: Stand) -> None:
    with connected(pixel(match={"ro.product.model": ["Pixel 8"]})) as phone:
        facts = phone.facts
    assert (facts["ro.soc.model"], facts["cpu"], facts["features"]) == (
        "Tensor G3",
        "Google Tensor G3",
        "fp asimd asimddp i8mm",
    )
    assert (facts["threads"], facts["cores"]) == (4, [4, 5, 6, 7])
    assert {*facts["programs"]["onnxruntime"]} == {"onnxruntime_perf_test", "libonnxruntime.so"}
    assert SERIAL not in json.dumps(facts)
    assert not stand.left(), "looking at a phone leaves nothing on it"


def test_a_phone_that_is_not_asked_for_cores_gives_the_last(stand: Stand) -> None:
    with connected(pixel(controls={"threads": 2})) as phone:
        assert phone.facts["cores"] == [7, 8]


@pytest.mark.parametrize("runtime", ["executorch", "onnxruntime"])
def test_a_file_is_timed_in_a_fresh_process_long_enough(stand: Stand, runtime: str) -> None:
    stand.is_(paces="200\n20")  # the trial is slow, as a first process is
    with connected(pixel()) as phone:
        answer = phone.run(job(runtime))
        again = phone.run(job(runtime))
    assert len(answer["samples_ns"]) >= 50 and {*answer["samples_ns"]} == {20_000_000}
    assert len(stand.programs()) == 4, "a trial, a process that was too short, the one that counts, and the next"
    assert again["samples_ns"] == answer["samples_ns"]
    assert answer["before"] == answer["after"] == {"celsius": 31.2, "throttled": 0}
    assert answer["versions"] == provenance.versions(runtime)
    assert (answer["load_ms"], answer["first_ms"]) == ((4.311, 60.0) if runtime == "executorch" else (40.4112, 4.0))
    assert figures.timings([answer, again])["latency.p50"] == [20.0, 20.0]
    assert not stand.left()


def test_a_program_gets_its_cores_threads_and_libraries(stand: Stand) -> None:
    with connected(pixel()) as phone:
        phone.run(job())
        phone.run(job("onnxruntime"))
    first, last = stand.programs()[0], stand.programs()[-1]
    assert first[0] == last[0] == "f0"
    assert "--cpu_threads=4" in first and any(word.endswith("it's a model.pte") for word in first)
    assert last[2:8] == ["-I", "-e", "cpu", "-m", "times", "-r"] and last[9:13] == ["-x", "4", "-y", "1"]


def test_a_slow_model_is_timed_three_times(stand: Stand) -> None:
    stand.is_(paces=9000)
    with connected(pixel()) as phone:
        assert len(phone.run(job())["samples_ns"]) == 3


def test_the_phone_must_answer_as_this_computer_does(stand: Stand) -> None:
    with connected(pixel()) as phone:
        assert phone.run(question()) == {"rows": 5}
        assert len(stand.programs()) == 3
        stand.is_(wrong="")
        with fails(AnswerError, r"it's a model.pte gives other outputs on the pixel-8 than .* up to 22 differ by"):
            phone.run(question())
    assert not stand.left()


def test_a_file_of_several_samples_at_once_is_checked_whole(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each of its three inputs, four samples; their answers are written one after the other."""

    def joined(_: processes.Host, job: dict[str, Any]) -> dict[str, Any]:
        rows = numpy.load(job["inputs"][0], allow_pickle=False)
        numpy.save(job["output"], numpy.concatenate(list(rows * 2)), allow_pickle=False)
        return {"rows": len(rows)}

    monkeypatch.setattr(processes.Host, "run", joined)
    asked = question()
    numpy.save("in.npy", numpy.arange(24, dtype="float32").reshape(3, 4, 2), allow_pickle=False)
    with connected(pixel()) as phone:
        assert phone.run({**asked, "rows": 3}) == {"rows": 3}


def test_a_file_that_gives_other_outputs_there_is_a_wrong_answer(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    def shorter(_: processes.Host, job: dict[str, Any]) -> dict[str, Any]:
        numpy.save(job["output"], numpy.ones((5, 3), "float32"), allow_pickle=False)
        return {"rows": 5}

    monkeypatch.setattr(processes.Host, "run", shorter)
    with connected(pixel()) as phone, fails(AnswerError, "gives 16 bytes on the pixel-8, and 12 here"):
        phone.run(question())


def test_what_perf_test_answers_is_not_looked_at_and_doubted(stand: Stand) -> None:
    with connected(pixel()) as phone:
        phone.run(question("onnxruntime"))
        assert not stand.programs()
        answers = [phone.run(job("onnxruntime"))] * 7
        assert "unchecked" not in phone.run(job())
    (doubt,) = figures.doubts(answers)
    assert "were not checked" in doubt


def test_perf_test_times_no_open_shapes(stand: Stand) -> None:
    with connected(pixel()) as phone, fails(DeviceError, "has dynamic shapes"):
        phone.run(job("onnxruntime", shapes={"ids": [1, 128]}))


def test_a_backend_must_be_on_both_sides(stand: Stand) -> None:
    with connected(pixel()) as phone:
        found = phone.run({"mode": "delegates", "runtime": "executorch"})
    assert found == {"delegates": ["XnnpackBackend"]}


def test_without_adb_or_a_phone_there_is_none(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.is_(devices="")
    with fails(AbsentError, "no Android device is attached"), connected(pixel()):
        pass
    monkeypatch.setenv("PATH", "/nowhere")
    with fails(AbsentError, "adb is not installed"), connected(pixel()):
        pass


def test_of_two_phones_one_must_be_named(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    stand.is_(devices=f"{SERIAL}\tdevice\nother\tunauthorized")
    with fails(DeviceError, "2 Android devices are attached"), connected(pixel()):
        pass
    monkeypatch.setenv("ANDROID_SERIAL", SERIAL)
    with connected(pixel()):
        pass
    monkeypatch.setenv("EDGEPACK_ADB_PIXEL_8", "other")
    with fails(DeviceError, "the pixel-8 is attached, and unauthorized"), connected(pixel()):
        pass
    monkeypatch.setenv("EDGEPACK_ADB_PIXEL_8", "third")
    with fails(AbsentError, "named by EDGEPACK_ADB_PIXEL_8 is not attached"), connected(pixel()):
        pass


@pytest.mark.parametrize(
    ("state", "hint"),
    [
        ("unauthorized", "unlock"),
        ("offline", "reconnect"),
        ("no permissions (x); see [y]", "sdk-platform-tools-common"),
    ],
)
def test_a_phone_that_cannot_be_used_says_what_to_do(stand: Stand, state: str, hint: str) -> None:
    stand.is_(devices=f"{SERIAL}\t{state}")
    with pytest.raises(DeviceError, match=f"is attached, and {state.partition(' (')[0]}\n") as failure:
        adb.connect(pixel())
    assert hint in failure.value.hint and not isinstance(failure.value, AbsentError)


def test_another_phone_is_refused(stand: Stand) -> None:
    nine = pixel(match={"ro.product.model": ["Pixel 9*"]})
    with fails(DeviceError, "its ro.product.model is 'Pixel 8', not Pixel 9"), connected(nine):
        pass
    x86: dict[str, Any] = {"ro.product.cpu.abi": "x86_64"}
    stand.tells(**x86)
    with fails(DeviceError, "is for x86_64, not arm64-v8a"), connected(pixel()):
        pass


@pytest.mark.parametrize(
    ("controls", "message"), [({"cores": [9]}, "sets core 9"), ({"threads": 10}, "asks for 10 threads")]
)
def test_controls_that_the_phone_cannot_give_are_refused(stand: Stand, controls: Any, message: str) -> None:
    with fails(DeviceError, message), connected(pixel(controls=controls)):
        pass


def test_without_programs_there_is_no_runtime(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEPACK_ORT_PERF_TEST")
    with connected(pixel()) as phone:
        assert {*phone.facts["versions"]} == {"executorch"}
    assert "EDGEPACK_ORT_PERF_TEST" in lacking(pixel(), "onnxruntime", "m.onnx").hint
    monkeypatch.delenv("EDGEPACK_EXECUTOR_RUNNER")
    with pytest.raises(DeviceError, match="no runtime for this phone") as failure, connected(pixel()):
        pass
    assert "cmake" in failure.value.hint and "build.sh" in failure.value.hint
    monkeypatch.setenv("EDGEPACK_EXECUTOR_RUNNER", "gone")
    with fails(DeviceError, "EDGEPACK_EXECUTOR_RUNNER names gone, which was not found"), connected(pixel()):
        pass


def test_a_program_must_be_for_arm64_and_of_a_known_version(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runner = tmp_path / "alone/executor_runner"
    runner.parent.mkdir()
    runner.write_bytes(ARM64)
    monkeypatch.setenv("EDGEPACK_EXECUTOR_RUNNER", str(runner))
    with fails(DeviceError, "the version of"), connected(pixel()):
        pass
    (runner.parent / "version.txt").write_text("0.7.0\n")
    with fails(DeviceError, "has executorch 0.7.0, where =="), connected(pixel()):
        pass
    with connected(pixel(runtimes={"executorch": ">=0.7"})):
        pass
    runner.write_bytes(b"#!/bin/sh\n")
    with fails(DeviceError, "is not a program for arm64"), connected(pixel()):
        pass


def test_a_full_phone_says_so_and_is_left_as_it_was(stand: Stand) -> None:
    stand.is_(full="")
    with connected(pixel()) as phone, fails(DeviceError, r"no space left for it's a model.pte \(4 B\)"):
        phone.run(job())
    assert not stand.left()


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("broken", "failed on it's a model.pte on the pixel-8: Loading of method forward failed"),
        ("silent", "logged nothing"),
        ("old", "too old"),
    ],
)
def test_a_runner_that_fails_gives_its_reason(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, trouble: str, message: str
) -> None:
    monkeypatch.setattr("edgepack.measure.runners.adb.folder.time.sleep", lambda seconds: None)
    stand.is_(**{trouble: ""})
    with connected(pixel()) as phone, fails(DeviceError, message):
        phone.run(job())
    assert not stand.left()


def test_what_a_killed_build_left_goes_days_later(stand: Stand) -> None:
    """Not what is in use, nor what others put there."""
    there, days = stand.folder / "data/local/tmp", 86400
    names = {"edgepack-0123456789ab": 3, "edgepack-ba9876543210": 0, "edgepack-notes": 3, "app": 3}
    for name, age in names.items():
        (there / name).mkdir()
        (there / name / "model.pte").touch()
        os.utime(there / name, times=(time.time() - age * days,) * 2)
    command = [sys.executable, "-c", "import time; time.sleep(3600)", "/data/local/tmp/edgepack-0123456789ab/runner"]
    with Popen(command) as left, connected(pixel()) as phone:
        phone.run(job())
        assert left.wait() == -9
    assert {each.name for each in stand.left()} == {"edgepack-ba9876543210", "edgepack-notes", "app"}


def test_a_folder_is_young_as_long_as_it_is_used(stand: Stand) -> None:
    with connected(pixel()) as phone:
        phone.run(job())
        [folder] = stand.left()
        os.utime(folder, times=(0, 0))
        phone.run(job())
        assert folder.stat().st_mtime > 1e9


def test_a_library_that_is_missing_is_named(stand: Stand, tmp_path: Path) -> None:
    (tmp_path / "tools/libonnxruntime.so").rename(tmp_path / "lib.so")
    (tmp_path / "tools/VERSION_NUMBER").write_text(provenance.versions("onnxruntime")["onnxruntime"])
    with connected(pixel()) as phone, fails(DeviceError, r'library "libonnxruntime.so" not found'):
        phone.run(job("onnxruntime"))


def _running(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
    return [line for line in found if word in line]


def test_a_program_that_hangs_is_ended_there(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adb_folder, "_TIMEOUT", 0.5)
    stand.is_(hang="")
    with connected(pixel()) as phone:
        assert isinstance(phone, adb.Phone)
        with fails(DeviceError, "did not finish in"):
            phone.run(job())
        assert not _running(phone.folder.path.rpartition("/")[2])
    assert not stand.left()


def test_a_phone_that_restarts_is_waited_for_and_tried_again(stand: Stand) -> None:
    stand.is_(lost=1)
    with connected(pixel()) as phone:
        assert len(phone.run(job())["samples_ns"]) >= 50
        stand.is_(lost=1)
        phone.run(question())
    assert not stand.left()


def test_a_phone_that_restarts_twice_is_given_up(stand: Stand) -> None:
    stand.is_(lost=2)
    with connected(pixel()) as phone, fails(DeviceError, "disconnected twice"):
        phone.run(job())


def test_a_phone_that_stays_away_is_given_up(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_RETURN", 0.3)
    stand.is_(lost=1, returns=None)
    with connected(pixel()) as phone, fails(DeviceError, "disconnected and was not back in"):
        phone.run(job())


def test_a_phone_that_is_throttled_says_so(stand: Stand) -> None:
    stand.tells(thermal=2)
    with connected(pixel()) as phone, fails(DeviceError, "reports throttling"):
        protocol.time_in_turns(phone.run, [job()], [[]], lambda taken: True, lambda done, total: None)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"celsius": 41.0}, "its battery has 41 degrees Celsius, above the 37 of cool_down, after"),
        ({"thermal": 1}, "it is throttled, thermal status 1, after"),
    ],
)
def test_a_warm_phone_is_waited_for(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], message: str
) -> None:
    stand.tells(**state)
    monkeypatch.setattr(adb, "_PAUSE", 0.0)
    cool: dict[str, Any] = {"cool_down": {"below": 37.0, "seconds": 0.0}}
    with connected(pixel()) as phone:
        with fails(DeviceError, message):
            phone.run(job(**cool))
        monkeypatch.setattr("edgepack.measure.runners.adb.time.sleep", lambda seconds: stand.tells(celsius=30.0))
        assert phone.run(job(cool_down={"below": 37.0, "seconds": 60.0}))["before"]["celsius"] == 30.0


@pytest.mark.parametrize("id", ["pixel-8", "android-arm64"])
def test_the_shipped_profiles_take_this_phone(stand: Stand, id: str) -> None:
    shipped = load_device(id)
    with connected(shipped) as phone:
        assert phone.facts["threads"] == shipped.controls.threads
