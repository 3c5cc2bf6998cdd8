import os
import sys
from pathlib import Path
from subprocess import CompletedProcess, Popen
from typing import Any

import pytest
from factories import device
from torch_factories import exported
from torch_factories import tiny_models as tiny_models

from edgepack.device import Controls
from edgepack.errors import DeviceError
from edgepack.runners import connected, host
from edgepack.worker import TOO_WARM

ONE = Controls(threads=1)


def run(job: dict[str, Any], controls: Controls = ONE) -> dict[str, Any]:
    return host.Host(controls).run(job)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A worker to be written by the test."""
    monkeypatch.setattr(host, "_WORKER", tmp_path / "worker.py")
    return tmp_path / "worker.py"


def test_a_job_gets_its_threads_as_many_cores_and_pools_of_that_size(worker: Path) -> None:
    worker.write_text(
        "import json, os, sys\n"
        "pools = {name: os.environ[name] for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}\n"
        "print(json.dumps({**json.loads(sys.argv[1]), 'pools': pools, 'pid': os.getpid()}))\n"
    )
    cores = sorted(os.sched_getaffinity(0))
    one, all_, more = run({"runtime": "x"}), run({}, Controls()), run({}, Controls(threads=len(cores) + 5))
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
        run({"runtime": runtime, "file": str(file), "mode": "memory"})
    assert failure.value.code == 4
    assert f"{runtime} failed on {file}" in failure.value.message and reason in failure.value.message
    assert failure.value.hint and "Traceback" not in str(failure.value)


def test_a_missing_file_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"(?i)no such file|doesn't exist"):
        run({"runtime": "onnxruntime", "file": str(tmp_path / "gone.onnx"), "mode": "memory"})


@pytest.mark.parametrize(
    ("program", "message", "hint"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended with code -9", "memory"),
        ("raise SystemExit(3)", "ended with code 3 and said nothing", "doctor"),
        ("import sys; sys.exit('the model wants\\n\\nmore')", "x failed on f: more", "doctor"),
    ],
)
def test_a_worker_that_dies_is_a_device_error_that_says_how(
    worker: Path, program: str, message: str, hint: str
) -> None:
    worker.write_text(program)
    with pytest.raises(DeviceError) as failure:
        run({"runtime": "x", "file": "f"})
    assert message in failure.value.message and hint in failure.value.hint


def test_a_worker_that_hangs_is_stopped(worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(host, "_TIMEOUT", 0.2)
    with pytest.raises(DeviceError, match="did not finish"):
        run({"file": "f"})


def test_a_worker_that_hangs_goes_with_the_process_that_started_it(worker: Path) -> None:
    """However that ends: it is killed. What tells of the worker's end is that of what it alone can write to."""
    worker.write_text(
        "import time\n"
        "from edgepack import worker\n"
        "told = open('fifo', 'w')\n"
        "def hang():\n"
        "    told.write('hangs\\n')\n"
        "    told.flush()\n"
        "    time.sleep(3600)\n"
        "worker.probe = hang\n"
        "import json, sys\n"
        "worker.main(json.loads(sys.argv[1]))\n"
    )
    os.mkfifo("fifo")
    starts = (
        "import sys\n"
        "from pathlib import Path\n"
        "from edgepack.device import Controls\n"
        "from edgepack.runners import host\n"
        "host._WORKER = Path(sys.argv[1])\n"
        "host.Host(Controls(threads=1)).run({'mode': 'probe'})\n"
    )
    with Popen([sys.executable, "-c", starts, str(worker)]) as build, Path("fifo").open() as told:
        assert told.readline() == "hangs\n"
        build.kill()
        assert told.read() == "", "it goes on where the worker does"


def test_a_timing_depends_on_processor_kernel_and_threads() -> None:
    one = host.Host(ONE).facts
    assert one == host.Host(ONE).facts
    assert one["threads"] == 1 and one["cpu"] and one["kernel"] == os.uname().release
    assert host.Host(Controls()).facts == {**one, "threads": len(os.sched_getaffinity(0))}
    assert {"onnxruntime", "executorch"} <= set(one["versions"])


@pytest.mark.parametrize(
    ("controls", "message"),
    [({"threads": 99}, "asks for 99 threads, and this computer has"), ({"cores": (4096,)}, "asks for the core 4096")],
)
def test_controls_that_this_computer_cannot_give_are_device_errors(controls: dict[str, Any], message: str) -> None:
    with pytest.raises(DeviceError, match=message), connected(device(controls=controls)):
        pass


def test_the_cores_of_a_profile_are_those_it_runs_on(worker: Path) -> None:
    worker.write_text("import json, sys; print(sys.argv[1])")
    first = min(os.sched_getaffinity(0))
    assert run({}, Controls(cores=(first,)))["cpus"] == [first]


def test_timings_of_another_governor_are_not_taken_for_those_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = []
    for governor in ("powersave", "performance", ""):
        monkeypatch.setattr("edgepack.worker.governor", lambda told=governor: told)
        facts.append(host.Host(Controls()).facts.get("governor"))
    assert facts == ["powersave", "performance", None]


def test_a_runtime_that_is_not_installed_is_no_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.provenance.versions", lambda *names: dict.fromkeys(names, "not installed"))
    assert host.Host(Controls()).facts["versions"] == {}


def test_a_device_that_stays_warm_is_told_so() -> None:
    done = CompletedProcess([], TOO_WARM, "", "it stays at 71 degrees Celsius\n")
    with pytest.raises(DeviceError, match="it stays at 71 degrees Celsius\n  let it cool"):
        host.answer(done, {"runtime": "onnxruntime", "file": "m.onnx"})
