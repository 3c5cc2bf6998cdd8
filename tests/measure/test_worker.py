"""The worker runs alone on the device: here its one file is started as a runner would start it."""

import gc
import hashlib
import json
import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy
import pytest
from factories import python
from torch_factories import data, exported, logits, made
from torch_factories import tiny_models as tiny_models

from edgepack.core.runtimes import RUNTIMES
from edgepack.measure import evaluate
from edgepack.measure.runners.adb import programs
from edgepack.measure.runtimes.contract import Refused, Spec
from edgepack.measure.worker import archive, modes, system
from edgepack.measure.worker.job import REFUSED, TOO_WARM, _cool_down

FORMATS = {"executorch": "executorch", "onnxruntime": "onnx"}  # runtime -> exporter
COOL = {"cool_down": {"below": 60.0, "seconds": 1.0}}
PROTOCOL = {"warm_up_seconds": 0.0, "seconds": 0.0, "least_runs": 7, "most_runs": 50, "most_seconds": 60.0}


@pytest.fixture(params=FORMATS)
def job(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "model.bin"
    file.write_bytes(exported(FORMATS[request.param], "quantized"))
    (tmp_path / "worker.pyz").write_bytes(archive.packed())
    return {"runtime": request.param, "file": str(file), "threads": 1, "cpus": [min(os.sched_getaffinity(0))]}


def work(job: dict[str, Any], **more: Any) -> dict[str, Any]:
    command = [sys.executable, "worker.pyz", json.dumps({**job, **more})]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    [line] = ran.stdout.splitlines()
    answer: dict[str, Any] = json.loads(line)
    return answer


def test_the_file_needs_no_edgepack_on_the_device(job: dict[str, Any]) -> None:
    """Without site, what is installed here in place is not found; the packages of a runtime are."""
    command = [sys.executable, "-S", "worker.pyz", json.dumps({**job, "mode": "time", **PROTOCOL})]
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("platlib")}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert len(json.loads(ran.stdout)["samples_ns"]) == 7


def test_the_file_holds_all_that_its_modules_import_besides_the_standard_library() -> None:
    Path("worker.pyz").write_bytes(archive.packed())
    modules = [name.removesuffix(".py").replace("/", ".") for name in ZipFile("worker.pyz").namelist()]
    code = "import sys; sys.path.insert(0, 'worker.pyz')\nimport {}\nprint(*sys.modules)"
    named = ", ".join(name.removesuffix(".__init__") for name in modules if name != "__main__")
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code.format(named)], capture_output=True, text=True, check=True
    )
    assert {name.partition(".")[0] for name in ran.stdout.split()} <= {*sys.stdlib_module_names, "edgepack", "__main__"}


def test_the_file_is_the_same_each_time() -> None:
    """Else a device that has it would be sent it again."""
    code = (
        "from hashlib import sha256\n"
        "from edgepack.measure.worker import archive\n"
        "print(sha256(archive.packed()).hexdigest())"
    )
    assert python(code).out.strip() == hashlib.sha256(archive.packed()).hexdigest()
    Path("worker.pyz").write_bytes(archive.packed())
    assert {each.date_time for each in ZipFile("worker.pyz").infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_every_runtime_has_its_module_under_another_name_than_its_packages() -> None:
    for runtime in RUNTIMES.values():
        assert hasattr(import_module(f"edgepack.measure.runtimes.{runtime.module}"), "Runtime")
        assert runtime.module not in runtime.packages
    assert {*programs.KINDS} <= {*RUNTIMES}


def test_time(job: dict[str, Any]) -> None:
    answer = work(job, mode="time", **PROTOCOL)
    assert answer["load_ms"] > 0 and answer["first_ms"] > 0
    assert len(answer["samples_ns"]) == 7 and all(isinstance(ns, int) and ns > 0 for ns in answer["samples_ns"])
    assert job["runtime"] in answer["versions"]
    assert (answer["cpu_contention"], answer["blind"]) == (0.0, False)  # of so short a time


def test_memory(job: dict[str, Any]) -> None:
    """The tiny model weighs some 20 kB; what its runtime takes to load and run it is more, and far from its own."""
    answer = work(job, mode="memory")
    assert 10_000 < answer["peak_bytes"] < 32 * 2**20
    assert answer["baseline_bytes"] > 10 * 2**20


def test_predict(job: dict[str, Any]) -> None:
    inputs, output = Path("input.npy"), Path("output.npz")
    numpy.save(inputs, data().test.inputs[0].numpy())
    assert work(job, mode="predict", inputs=[str(inputs)], output=str(output))["rows"] == 48
    (answers,) = evaluate.answers(output)
    assert answers.shape == (48, 3)
    assert (answers.argmax(1) == logits(made("quantized").module).numpy().argmax(1)).all()


def test_a_file_that_is_given_another_number_of_inputs_is_refused(job: dict[str, Any]) -> None:
    numpy.save("input.npy", data().test.inputs[0].numpy())
    command = [sys.executable, "worker.pyz", json.dumps({**job, "mode": "predict", "inputs": ["input.npy"] * 2})]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (REFUSED, "got 2 inputs, but the file has 1")


TELL = """
import gc, json, os, sys
sys.path.insert(0, "worker.pyz")
from edgepack.measure.worker import job, modes
tasks = lambda: [sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")]
modes.MODES["tell"] = lambda *_: {"tasks": tasks(), "garbage": [gc.isenabled(), gc.get_count()[0]]}
print(json.dumps(job.run(json.loads(sys.argv[1]))))
"""


def answered(job: dict[str, Any]) -> dict[str, Any]:
    ran = subprocess.run([sys.executable, "-c", TELL, json.dumps(job)], capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return answer


def answered_after_waiting(job: dict[str, Any]) -> dict[str, Any]:
    """Its runtime was imported before it knew the job, on whichever core."""
    ours, its = socket.socketpair()
    start = {"runtime": job["runtime"], "wait": its.fileno(), "leash": True}
    command, pipe = [sys.executable, "-c", TELL, json.dumps(start)], subprocess.PIPE
    with ours, subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, pass_fds=[its.fileno()]) as process:
        its.close()
        assert ours.recv(1)
        assert os.sched_getaffinity(process.pid) == os.sched_getaffinity(0)
        ours.sendall(json.dumps(job).encode())
        ours.shutdown(socket.SHUT_WR)
        assert process.stdout
        answer: dict[str, Any] = json.loads(process.stdout.read().splitlines()[-1])
    return answer


@pytest.mark.parametrize("tell", [answered, answered_after_waiting])
def test_threads_and_processors_are_pinned(job: dict[str, Any], tell: Callable[[dict[str, Any]], Any]) -> None:
    """The runtime's pool has as many threads as were asked for, this one included, however large the machine is."""
    tasks = {}
    for threads in (1, 3):
        tasks[threads] = tell({**job, "mode": "tell", "threads": threads})["tasks"]
        assert all(cpus == job["cpus"] for cpus in tasks[threads])
    assert len(tasks[3]) == len(tasks[1]) + 2


def test_garbage_is_collected_as_ever_once_the_runtime_is_imported(job: dict[str, Any]) -> None:
    """What the import made is no part of that: to go through it takes a tenth of a second."""
    enabled, young = answered({**job, "mode": "tell"})["garbage"]
    assert enabled and young < gc.get_threshold()[0]


class Idle:
    def run(self, bound: object) -> None:
        pass


@pytest.mark.parametrize(
    ("least", "most", "most_seconds", "expected"), [(3, 10, 60, 3), (12, 10, 60, 10), (30, 100, 0, 3)]
)
def test_runs_are_bounded_all_ways(least: int, most: int, most_seconds: float, expected: int) -> None:
    runtime: Any = Idle()
    taken = modes.repeat(runtime, None, seconds=0, least=least, most=most, most_seconds=most_seconds)
    assert len(taken) == expected


def test_a_device_tells_what_it_is(job: dict[str, Any]) -> None:
    found = work({"mode": "probe"})
    assert found["machine"] == os.uname().machine and found["kernel"] == os.uname().release
    assert found["memory_bytes"] > 2**30 and found["free_bytes"] > 0
    assert {"onnxruntime", "executorch"} <= set(found["versions"])


STAT = """cpu  5000 0 0 5000 0 0 0 0 0 0
cpu0 {busy} 0 0 {idle} 100 0 0 {stolen} 0 0
cpu1 9999 0 0 1 0 0 0 0 0 0
intr 1 2 3
"""


@pytest.mark.parametrize(
    ("busy", "idle", "stolen", "own", "share"),
    [
        (1200, 1000, 0, 2.0, 0.0),  # 2 seconds on one core, all of them its own
        (1200, 1000, 0, 1.5, 0.25),
        (1100, 1000, 100, 1.0, 0.5),  # what the machine below gave to others counts too
        (1000, 1200, 0, 0.0, 0.0),  # idle
        (1000, 1000, 0, 0.0, 0.0),  # nothing is told
        (1010, 1000, 0, 0.0, 0.0),  # too short a time to tell
    ],
)
def test_others_are_who_took_the_time_of_its_cores(
    busy: int, idle: int, stolen: int, own: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_TICKS", 100)
    before = system.others(STAT.format(busy=1000, idle=1000, stolen=0), {0}, 0.0)
    after = system.others(STAT.format(busy=busy, idle=idle, stolen=stolen), {0}, own)
    assert system.share(before, after) == pytest.approx(share)


def test_a_system_that_tells_no_times_has_no_others() -> None:
    assert system.others("", {0}, 1.0)[1] == 0.0


@pytest.mark.parametrize(
    ("asked", "facts", "expected"),
    [(COOL, {"celsius": 40.0}, False), (COOL, {"throttled": 0}, True), ({}, {}, False)],
)
def test_a_device_is_blind_that_should_be_cool_and_has_no_sensor(
    asked: dict[str, Any], facts: dict[str, Any], expected: bool
) -> None:
    assert system.blind(asked, facts) is expected


@pytest.mark.parametrize(
    ("program", "facts"),
    [
        ("echo throttled=0x50005", {"throttled": 5}),
        ("echo throttled=0x0", {"throttled": 0}),
        ("echo 'error=1 error_msg=\"Command not registered\"'; exit 255", {}),
        ("echo VCHI initialization failed >&2; exit 255", {}),
        ("exec sleep 3600", {}),
    ],
)
def test_a_raspberry_pi_tells_whether_it_is_throttled(
    program: str, facts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("vcgencmd").write_text(f"#!/bin/sh\n{program}\n")
    Path("vcgencmd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path.cwd()}:/usr/bin:/bin")
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    if "sleep" in program:
        monkeypatch.setattr(system, "_FIRMWARE", 0.2)
    assert system.state() == facts


def test_a_leashed_worker_ends_with_its_input(job: dict[str, Any]) -> None:
    """What is asked of it would take half an hour."""
    slow = {**PROTOCOL, "seconds": 1800.0, "most_runs": 10**9, "most_seconds": 1800.0}
    command = [sys.executable, "worker.pyz", json.dumps({**job, "mode": "time", "leash": True, **slow})]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (1, "")


def test_a_worker_that_waits_ends_with_its_input(job: dict[str, Any]) -> None:
    ours, its = socket.socketpair()
    start = {"runtime": job["runtime"], "wait": its.fileno(), "leash": True}
    command = [sys.executable, "worker.pyz", json.dumps(start)]
    with ours, subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[its.fileno()]) as process:
        its.close()
        assert ours.recv(1) and process.stdin
        process.stdin.close()
        assert process.wait() != 0


def test_a_device_that_stays_warm_is_not_timed(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(system, "state", lambda: {"celsius": 71.4})
    with pytest.raises(SystemExit, match=str(TOO_WARM)):
        _cool_down(below=60, seconds=0)
    assert "it stays at 71 degrees Celsius, above the 60" in capsys.readouterr().err
    _cool_down(below=72, seconds=0)


def test_inputs_are_made_from_the_files_own_facts() -> None:
    specs: list[Spec] = [("x", (1, 3, 4, 4), "float32"), ("ids", (1, 7), "int64")]
    [picture, words] = modes.noise(specs)
    assert (picture.shape, picture.dtype, words.shape, words.dtype) == ((1, 3, 4, 4), "float32", (1, 7), "int64")
    assert numpy.array_equal(picture, modes.noise(specs[:1])[0])


def test_a_shape_that_the_file_leaves_open_is_given() -> None:
    specs: list[Spec] = [("x", ("batch", 3, 4, 4), "float32")]
    with pytest.raises(Refused, match="the shape of x is dynamic: batch, 3, 4, 4"):
        modes._fixed(specs, {})
    assert modes._fixed(specs, {"shapes": {"x": [2, 3, 4, 4]}}) == [("x", (2, 3, 4, 4), "float32")]


def test_a_file_tells_its_inputs(job: dict[str, Any]) -> None:
    [spec] = work(job, mode="describe")["inputs"]
    assert (spec["shape"], spec["dtype"]) == ([1, *data().test.inputs[0].shape[1:]], "float32")
