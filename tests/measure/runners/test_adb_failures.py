"""An Android phone, by a stand-in for adb (adb_stand_in/): what can go wrong."""

import contextlib
import os
import sys
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from stand_ins.adb_phone import ARM64, SERIAL, Stand, fails, job, pixel, question
from stand_ins.adb_phone import stand as stand

from edgepack.config.device import load_device
from edgepack.core import provenance
from edgepack.core.errors import AbsentError, DeviceError
from edgepack.measure.contract import connected, lacking
from edgepack.measure.runners import adb
from edgepack.measure.runners.adb import folder as adb_folder
from edgepack.measure.runners.adb import link
from edgepack.measure.timing import protocol


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
    ("controls", "message"), [({"cores": [9]}, "sets core 9"), ({"threads": 10}, "sets 10 threads")]
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
    with fails(DeviceError, "the version of .* is unknown"), connected(pixel()):
        pass
    (runner.parent / "version.txt").write_text("0.7.0\n")
    with fails(DeviceError, "has executorch 0.7.0, but =="), connected(pixel()):
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
        protocol.time_alternately(phone.run, [job()], [[]], lambda taken: True, lambda done, total: None)


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
