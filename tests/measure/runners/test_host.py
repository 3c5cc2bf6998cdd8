import os
import shutil
import sys
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest
from factories import PROJECT, device, run_here
from torch_factories import exported
from torch_factories import tiny_models as tiny_models

from edgepack.config.device import Controls
from edgepack.core.errors import DeviceError
from edgepack.measure import processes
from edgepack.measure.contract import connected
from edgepack.measure.worker.job import TOO_WARM

ONE = Controls(threads=1)
AWAITED = """
import json, os, sys, time
line = json.loads(sys.argv[1])["wait"]
os.write(line, b"!")
job = json.load(open(line))
"""
WHEN = pytest.mark.parametrize("before", ["", AWAITED], ids=["as it imports its runtime", "at its job"])
LOGS = """
import os, time
def log(what):
    with open("log", "a") as file:
        file.write(f"{what} {os.getpid()}\\n")
log("starts")
time.sleep(0.1 * open("log").read().count("starts"))  # one is always the last
log("ready")
"""


@pytest.fixture(autouse=True)
def several_at_once(one_process_at_a_time: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_MOST", 4)  # as ever, but for other tests


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A worker to be written by the test."""
    monkeypatch.setattr(processes, "_WORKER", [str(tmp_path / "worker.py")])
    return tmp_path / "worker.py"


def test_a_job_gets_its_threads_as_many_cores_and_pools_of_that_size(worker: Path) -> None:
    worker.write_text(
        f"{AWAITED}"
        "pools = {name: os.environ[name] for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}\n"
        "print(json.dumps({**job, 'pools': pools, 'pid': os.getpid()}))\n"
    )
    cores = sorted(os.sched_getaffinity(0))
    one, all_, more = (
        run_here({"runtime": "x"}, controls) for controls in (ONE, Controls(), Controls(threads=len(cores) + 5))
    )
    assert (one["runtime"], one["threads"], one["cpus"]) == ("x", 1, cores[-1:])
    assert set(one["pools"].values()) == {"1"}
    assert (all_["threads"], all_["cpus"]) == (more["threads"], more["cpus"]) == (len(cores), cores)
    assert len({os.getpid(), one["pid"], all_["pid"], more["pid"]}) == 4


@pytest.mark.parametrize(
    ("runtime", "format", "reason"), [("onnxruntime", "onnx", "INVALID_PROTOBUF"), ("executorch", "executorch", "0x")]
)
def test_a_broken_file_is_a_device_error_with_the_runtimes_reason(
    runtime: str, format: str, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "broken.bin"
    file.write_bytes(exported(format, "quantized")[:-1000][::-1])
    with pytest.raises(DeviceError) as failure:
        run_here({"runtime": runtime, "file": str(file), "mode": "memory"})
    assert failure.value.code == 4
    assert f"{runtime} failed on {file}" in failure.value.message and reason in failure.value.message
    assert failure.value.hint and "Traceback" not in str(failure.value)


def test_a_missing_file_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"(?i)no such file|doesn't exist"):
        run_here({"runtime": "onnxruntime", "file": str(tmp_path / "gone.onnx"), "mode": "memory"})


@WHEN
@pytest.mark.parametrize(
    ("program", "message", "hint"),
    [
        ("import os; os.kill(os.getpid(), 9)", "x failed on f: it died of SIGKILL", "memory"),
        ("raise SystemExit(3)", "ended with code 3 without a message", "doctor"),
        ("import sys; sys.exit('the model wants\\n\\nmore')", "x failed on f: more", "doctor"),
    ],
)
def test_a_worker_that_dies_is_a_device_error_that_says_how(
    worker: Path, before: str, program: str, message: str, hint: str
) -> None:
    worker.write_text(before + program)
    with pytest.raises(DeviceError) as failure:
        run_here({"runtime": "x", "file": "f"})
    assert message in failure.value.message and hint in failure.value.hint


@WHEN
def test_a_worker_that_hangs_is_stopped(before: str, worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.write_text(f"{before}import time; open('began', 'w'); time.sleep(3600)")
    monkeypatch.setattr(processes, "_TIMEOUT", 5.0)  # within which a Python has started
    with pytest.raises(DeviceError, match="did not finish"):
        run_here({"file": "f"})
    assert Path("began").exists()


@pytest.mark.parametrize("imports", ["self.start()", "pass"], ids=["as it imports its runtime", "at its job"])
def test_workers_go_with_the_process_that_started_them(imports: str, worker: Path) -> None:
    """However that ends: it is killed. What tells of their end, of those that wait too, is that of what they alone
    can write to.
    """
    worker.write_text(
        "import json, sys, time\n"
        "from edgepack.core.runtimes import RUNTIMES, RuntimeInfo\n"
        "from edgepack.measure.worker import job\n"
        "class Runtime:\n"
        "    def __init__(self):\n"
        "        self.pipe = open('fifo', 'w')\n"
        f"        {imports}\n"
        "    def start(self, *_):\n"
        "        self.pipe.write('hangs\\n')\n"
        "        self.pipe.flush()\n"
        "        time.sleep(3600)\n"
        "RUNTIMES['x'] = RuntimeInfo('x', packages=(), suffixes=())\n"
        "sys.modules['edgepack.measure.runtimes.x'] = sys.modules['__main__']\n"
        "job.run(json.loads(sys.argv[1]))\n"
    )
    os.mkfifo("fifo")
    starts = (
        "import sys\n"
        "from edgepack.config.device import Controls\n"
        "from edgepack.measure import processes\n"
        "processes._WORKER = sys.argv[1:]\n"
        "processes.Host(Controls(threads=1)).run({'runtime': 'x', 'mode': 'time'})\n"
    )
    with Popen([sys.executable, "-c", starts, str(worker)]) as build, Path("fifo").open() as pipe:
        assert pipe.readline() == "hangs\n"
        build.kill()
        pipe.read()  # it ends once nobody is left


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many this computer is said to have."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    return 3


def once(job: dict[str, Any]) -> dict[str, Any]:
    """What a job gives of a computer that starts as many processes at once as it has cores."""
    with closing(processes.Host(ONE)) as here:
        return here.run(job)


def log() -> list[tuple[str, str]]:
    """What happened, and in which process."""
    lines = (line.split() for line in Path("log").read_text().splitlines())
    return [(what, process) for what, process in lines]


def test_a_process_does_one_job_and_none_begins_while_another_starts(worker: Path, cores: int) -> None:
    worker.write_text(f"{LOGS}{AWAITED}log('begins')\nprint(json.dumps(job))\nlog('ends')\n")
    with closing(processes.Host(ONE)) as here:
        assert [here.run({"runtime": "x", "job": i})["job"] for i in range(cores + 1)] == [0, 1, 2, 3]
    found = log()
    happened = [what for what, _ in found]
    one = ["begins", "ends"]
    for batch, jobs in (happened[: 4 * cores], cores), (happened[4 * cores :], 1):
        assert sorted(batch[: 2 * cores]) == ["ready"] * cores + ["starts"] * cores
        assert batch[2 * cores :] == one * jobs
    assert len({process for what, process in found if what == "begins"}) == cores + 1


def test_each_runtime_has_workers_of_its_own(worker: Path, cores: int) -> None:
    worker.write_text(AWAITED + "print(json.dumps({'imported': json.loads(sys.argv[1])['runtime']}))\n")
    with closing(processes.Host(ONE)) as here:
        for runtime in ("x", "y", "x"):
            assert here.run({"runtime": runtime}) == {"imported": runtime}


def test_no_more_than_four_start_at_once(worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {*range(64)})
    worker.write_text(f"{LOGS}{AWAITED}print(json.dumps(job))\n")
    once({"runtime": "x"})
    assert len({process for _, process in log()}) == 4


def test_those_that_got_no_job_are_gone_afterwards(worker: Path, cores: int) -> None:
    worker.write_text(f"{LOGS}{AWAITED}print(json.dumps(job))\n")
    once({"runtime": "x"})
    ended = {process for _, process in log()}
    assert len(ended) == cores and not any(Path("/proc", process).exists() for process in ended)


def test_those_that_do_not_start_in_time_are_gone_too(
    worker: Path, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is ready at most."""
    Path("log").touch()
    monkeypatch.setattr(processes, "_TIMEOUT", 1.0)
    first = "if open('log').read().count('starts') > 1:\n    time.sleep(3600)\n"
    worker.write_text(f"{LOGS}{first}{AWAITED}print(json.dumps(job))\n")
    here = processes.Host(ONE)
    with pytest.raises(DeviceError, match="f did not finish in 1 s"):
        here.run({"runtime": "x", "file": "f"})
    assert not any(Path("/proc", process).exists() for _, process in log())


def test_one_that_was_killed_as_it_waited_is_no_failure_of_the_next_job(worker: Path, cores: int) -> None:
    worker.write_text(f"{AWAITED}print(json.dumps(job))\n")
    with closing(processes.Host(ONE)) as here:
        here.run({"runtime": "x"})
        for each in here._waiting:
            each._process.kill()
            each._process.wait()
        assert here.run({"runtime": "x", "file": "f"})["file"] == "f"


def test_one_that_was_killed_as_it_started_is_no_failure_while_there_are_others(worker: Path, cores: int) -> None:
    killed = "if open('log').read().count('starts') == 1:\n    os.kill(os.getpid(), 9)\n"
    worker.write_text(f"{LOGS}{killed}{AWAITED}print(json.dumps(job))\n")
    Path("log").touch()
    assert [once({"runtime": "x", "job": i})["job"] for i in range(2)] == [0, 1]


def test_a_start_that_is_interrupted_leaves_nobody(worker: Path, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    worker.write_text(f"{AWAITED}print(json.dumps(job))\n")
    monkeypatch.setattr(processes._Process, "wait", interrupted)
    here = processes.Host(ONE)
    with pytest.raises(KeyboardInterrupt):
        here.run({"runtime": "x"})
    assert here._waiting == []


def test_a_worker_that_says_much_hangs_nobody(worker: Path) -> None:
    """More than a pipe holds, whether it waits or works."""
    says = "import sys; sys.stderr.write('it warns\\n' * 100_000)\n"
    worker.write_text(f"{says}{AWAITED}{says}print(json.dumps(job))\n")
    assert run_here({"runtime": "x", "file": "f"})["file"] == "f"
    worker.write_text(f"{says}{AWAITED}{says}sys.exit('it fails')\n")
    with pytest.raises(DeviceError, match="x failed on f: it fails"):
        run_here({"runtime": "x", "file": "f"})


def test_a_timing_depends_on_processor_kernel_and_threads() -> None:
    one = processes.Host(ONE).facts
    assert one == processes.Host(ONE).facts
    assert one["threads"] == 1 and one["cpu"] and one["kernel"] == os.uname().release
    assert processes.Host(Controls()).facts == {**one, "threads": len(os.sched_getaffinity(0))}
    assert {"onnxruntime", "executorch"} <= set(one["versions"])


@pytest.mark.parametrize(
    ("controls", "message"),
    [({"threads": 99}, "sets 99 threads, but this computer has"), ({"cores": (4096,)}, "sets core 4096")],
)
def test_controls_that_this_computer_cannot_give_are_device_errors(controls: dict[str, Any], message: str) -> None:
    with pytest.raises(DeviceError, match=message), connected(device(controls=controls)):
        pass


def test_the_cores_of_a_profile_are_those_it_runs_on(worker: Path) -> None:
    worker.write_text(f"{AWAITED}print(json.dumps(job))")
    first = min(os.sched_getaffinity(0))
    assert run_here({}, Controls(cores=(first,)))["cpus"] == [first]


def test_timings_of_another_governor_are_not_taken_for_those_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = []
    for governor in ("powersave", "performance", ""):
        monkeypatch.setattr("edgepack.measure.worker.system.governor", lambda name=governor: name)
        facts.append(processes.Host(Controls()).facts.get("governor"))
    assert facts == ["powersave", "performance", None]


def test_a_runtime_that_is_not_installed_is_no_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.core.provenance.versions", lambda *names: dict.fromkeys(names, "not installed"))
    assert processes.Host(Controls()).facts["versions"] == {}


def test_what_lies_beside_edgepack_does_not_come_before_the_packages_of_a_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edgepack that runs is the one that started it, though."""
    beside = tmp_path / "beside"
    shutil.copytree(PROJECT / "edgepack", beside / "edgepack")
    (beside / "onnxruntime.py").write_text("raise ImportError('not this one')")
    with (beside / "edgepack/measure/worker/modes.py").open("a") as modes:
        modes.write("\nMODES['describe'] = lambda *_: {'ran': __file__}\n")
    monkeypatch.setattr(processes, "_WORKER", [*processes._WORKER[:2], str(beside)])
    file = tmp_path / "model.onnx"
    file.write_bytes(exported("onnx", "quantized"))
    answer = run_here({"runtime": "onnxruntime", "file": str(file), "mode": "describe"})
    assert answer["ran"] == str(beside / "edgepack/measure/worker/modes.py")


def test_a_device_that_stays_warm_is_told_so() -> None:
    done = CompletedProcess([], TOO_WARM, "", "it stays at 71 degrees Celsius\n")
    with pytest.raises(DeviceError, match="it stays at 71 degrees Celsius\n  let it cool"):
        processes.answer(done, {"runtime": "onnxruntime", "file": "m.onnx"})
