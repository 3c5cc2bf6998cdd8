"""Files under qemu-aarch64.

Most tests play qemu and the folder; what is on `prepared` is really emulated, and skipped where that cannot be.
"""

import json
import os
import shlex
import shutil
import stat
import sys
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy
import pytest
from factories import at_work, device, edgepack, recipe
from torch_factories import exported
from torch_factories import tiny_models as tiny_models

from edgepack.config.device import Device, load_device
from edgepack.core import provenance
from edgepack.core.errors import AbsentError, DeviceError
from edgepack.measure import evaluate
from edgepack.measure.contract import connected
from edgepack.measure.runners import emulated
from edgepack.measure.runners.emulated import system_image
from edgepack.workflows.build import pipeline
from edgepack.workflows.build.steps import timing
from edgepack.workflows.build.store import Store

HOME = system_image.home()  # before the tests' own environment hides what the user set
QEMU = f"""#!/bin/sh
[ "$1" = --version ] && echo "qemu-aarch64 version 7.2.22 (Debian 1:7.2)" && exit
echo "$@" > qemu.txt; env > env.txt; cp "$4/proc/cpuinfo" cpuinfo.txt; readlink "$4/site" /proc/self/fd/0 > links.txt
shift 7; unset PYTHONPATH; exec {shlex.quote(sys.executable)} "$@"
"""  # the Python of the tests, whichever the PATH names first: it has the runtime


def program(name: str, text: str) -> None:
    """A command on the path of the test."""
    path = Path("bin", name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def root_with(**versions: str) -> Path:
    """A folder as `devices prepare` makes it, but for its Python."""
    root = system_image.home()
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/python3.11").touch()
    (root / "edgepack.json").write_text("{}")
    for name, version in versions.items():
        about = root / "site" / f"{name}-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return root


@pytest.fixture(autouse=True)
def own_root(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_ARM64_ROOT", "arm64")


@pytest.fixture
def played(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """An emulated device whose qemu hands everything to this computer's Python."""
    monkeypatch.setenv("PATH", f"{own_place / 'bin'}:{os.environ['PATH']}")
    program("qemu-aarch64-static", QEMU)
    root_with(**provenance.versions("onnxruntime", "numpy"))
    return load_device("arm64-emulated")


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Device:
    """The shipped device, really emulated."""
    monkeypatch.setenv("EDGEPACK_ARM64_ROOT", str(HOME))
    there = load_device("arm64-emulated")
    try:
        with connected(there):
            return there
    except DeviceError as error:
        pytest.skip(str(error))


def predict(file: Path, where: Device, samples: int = 12) -> Any:
    random = numpy.random.default_rng(0)
    numpy.save("x.npy", random.random((samples, 1, 8, 8), dtype="float32"))
    job = {"mode": "predict", "rows": samples, "runtime": "onnxruntime", "file": str(file)}
    with connected(where) as connection:
        assert connection.run({**job, "inputs": ["x.npy"], "output": "y.npz"})["rows"] == samples
    return evaluate.answers(Path("y.npz"))[0]


@pytest.mark.parametrize("how", ["eager", "quantized"])
def test_a_file_answers_there_as_here(prepared: Device, how: Literal["eager", "quantized"]) -> None:
    file = Path("model.onnx")
    file.write_bytes(exported("onnx", how))
    there, here = predict(file, prepared), predict(file, load_device("host"))
    scale = numpy.abs(here).max()
    assert numpy.abs(there - here).max() <= (1e-5 if how == "eager" else 0.05) * scale
    assert (there.argmax(1) == here.argmax(1)).all()


def test_the_worker_runs_there_with_nothing_of_this_computers_python(
    played: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QEMU_CPU", "cortex-a35")
    with connected(played) as connection:
        assert connection.run({"mode": "delegates", "runtime": "onnxruntime"})["delegates"]
    arguments = Path("qemu.txt").read_text().split()
    assert arguments[:3] == ["-cpu", "cortex-a76", "-L"]
    assert arguments[4:7] == [str(system_image.home() / "usr/bin/python3.11"), "-P", "-S"]
    assert Path("links.txt").read_text().split()[0] == str(system_image.home() / "site")
    assert not Path(arguments[3]).exists()
    environment = Path("env.txt").read_text()
    assert f"PYTHONPATH={system_image.home() / 'site'}\n" in environment and "QEMU_CPU" not in environment


def test_the_processor_it_is_told_of_is_the_one_that_is_played(played: Device) -> None:
    old = device(runner={"emulated": {"cpu": "cortex-a53"}})
    blocks = []
    for each in (played, old):
        with connected(each) as connection:
            connection.run({"mode": "probe", "runtime": "onnxruntime"})
        blocks.append(Path("cpuinfo.txt").read_text().strip().split("\n\n"))
    (new, *_), (other, *_) = blocks
    assert {len(found) for found in blocks} == {os.cpu_count()}
    assert "0xd0b" in new and "asimddp" in new
    assert "0xd03" in other and "asimddp" not in other


def test_its_answers_are_emulated_and_depend_on_what_emulates(played: Device) -> None:
    assert played.evidence == {"predict": "emulated", "delegates": "emulated"}
    with connected(played) as connection:
        facts = connection.facts
    assert (facts["qemu"], facts["cpu"], facts["machine"]) == ("7.2.22", "cortex-a76", "aarch64")
    assert facts["versions"] == provenance.versions("onnxruntime")
    with connected(played) as connection:
        assert connection.facts == facts


@pytest.mark.parametrize("board", ["raspberry-pi-5", "cortex-a55", "pixel-8", "android-arm64"])
def test_it_gets_the_files_that_devices_with_its_processor_get(board: str) -> None:
    emulated, real = (load_device(each).settled({"features": "avx2"}) for each in ("arm64-emulated", board))
    assert emulated.quantization == real.quantization


def test_what_hangs_is_stopped(played: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    program("qemu-aarch64-static", QEMU.replace("exec ", "exec sleep 60 # "))
    monkeypatch.setattr(emulated, "_TIMEOUT", 0.2)
    monkeypatch.setattr(emulated, "_SLOWEST", 0.0)
    with (
        pytest.raises(DeviceError, match=r"m.onnx did not finish in 0 s"),
        connected(played) as connection,
    ):
        connection.run({"mode": "predict", "runtime": "onnxruntime", "file": "m.onnx"})


def test_what_crashes_is_a_device_error_that_says_how(played: Device) -> None:
    program("qemu-aarch64-static", QEMU.replace("exec ", "echo 'qemu: uncaught signal 11' >&2; kill -11 $$ # "))
    with pytest.raises(DeviceError, match=r"m\.onnx: qemu: uncaught signal 11") as failure, connected(played) as there:
        there.run({"mode": "predict", "runtime": "onnxruntime", "file": "m.onnx"})
    assert "devices prepare" in failure.value.hint


def test_a_worker_goes_with_the_process_that_started_it(played: Device) -> None:
    with connected(played) as connection:
        connection.run({"mode": "probe", "runtime": "onnxruntime"})
    assert Path("links.txt").read_text().split()[1].startswith("pipe:")
    assert '"leash": true' in Path("qemu.txt").read_text()


def test_files_of_a_runtime_that_it_never_has_are_not_run_and_nothing_is_timed(played: Device) -> None:
    work = at_work(recipe(), played, Store("store"))
    assert [work.why_not_run(format) for format in ("executorch", "onnx")] == [emulated._LACKS["executorch"], ""]
    assert "cannot time files" in timing.why_not_timed(work)


@pytest.mark.usefixtures("short_timings")
def test_a_bundle_is_the_same_whether_its_device_was_there_or_not(
    played: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was there, it ran one of the two files, and this computer both."""
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("net_of_nobody.py").write_text(NET)
    tiny = recipe(
        model={"python": "net_of_nobody:make"},
        data={"digits": {"size": 8}},
        device="arm64-emulated",
        stages=[{"train": {"epochs": 1, "batch_size": 32}}],
        export=["onnx", "executorch"],
        budgets={"size": "10 MB"},
    )
    store = Store("store")
    there = pipeline.build(tiny, played, store, dist="there")
    Path("bin", "qemu-aarch64-static").unlink()
    monkeypatch.setattr(emulated, "_QEMU", ("no-qemu",))
    away = pipeline.build(tiny, played, store, dist="away", remeasure=True)
    assert (there.absent, bool(there.not_run), bool(away.absent), bool(away.not_run)) == ("", True, True, False)
    assert there.bundle_sha256 == away.bundle_sha256
    assert "see the report" in Path("away/tiny/bundle/MODEL_CARD.md").read_text()


NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def test_no_qemu_and_no_folder_are_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch, own_place: Path) -> None:
    there = load_device("arm64-emulated")
    monkeypatch.setenv("PATH", str(own_place / "bin"))
    with pytest.raises(AbsentError, match="qemu-aarch64 is not installed") as failure:
        emulated.connect(there)
    assert "qemu-user-static" in failure.value.hint
    program("qemu-aarch64", QEMU)
    with pytest.raises(AbsentError, match="arm64 Python is not prepared") as failure:
        emulated.connect(there)
    assert failure.value.hint.startswith("run `edgepack devices prepare arm64-emulated`")
    assert "arm64 Python is not prepared" in edgepack("devices").out


def test_a_runtime_of_another_version_is_a_device_error(played: Device) -> None:
    shutil.rmtree("arm64")
    root_with(onnxruntime="1.0.0")
    with pytest.raises(DeviceError, match=r"has onnxruntime 1\.0\.0, but =="), connected(played):
        pass


# devices prepare


@pytest.fixture
def packages(played: Device) -> Device:
    """Debian's and the index's packages, played: one .deb with a Python in it, one wheel."""
    shutil.rmtree("arm64")
    program("apt-get", 'echo "$@" >> apt.txt; for o in "$@"; do case $o in Dir::Cache=*) d=${o#*=};; esac; done\n')
    program("apt-get", f"#!/bin/sh\n{Path('bin/apt-get').read_text()}touch $d/archives/python3_arm64.deb\n")
    program("dpkg-deb", '#!/bin/sh\nmkdir -p "$3/usr/bin" && touch "$3/usr/bin/python3.11"\n')
    return played


def wheel(name: str, version: str) -> str:
    path = Path(f"{name}-{version}-py3-none-any.whl")
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return str(path)


def test_the_folder_is_made_and_made_anew(packages: Device) -> None:
    messages: list[str] = []
    for _ in range(2):
        system_image.make(system_image.home(), [wheel("onnxruntime", "1.2.3")], messages.append)
    root = Path("arm64").absolute()
    assert system_image.python(root) == root / "usr/bin/python3.11"
    assert system_image.versions(root, "onnxruntime", "torch") == {"onnxruntime": "1.2.3"}
    assert json.loads((root / "edgepack.json").read_text())["packages"] == ["python3_arm64.deb"]
    assert messages[0] == "fetching Debian's Python for arm64"
    assert not list(Path().glob(".arm64-*")), "nothing half made is left"
    asked = Path("apt.txt").read_text()
    assert "APT::Architecture=arm64" in asked and "install --download-only python3 libstdc++6" in asked


def test_what_is_fetched_is_what_the_profile_wants(
    packages: Device, monkeypatch: pytest.MonkeyPatch, own_place: Path
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(system_image, "make", lambda root, wheels, tell: asked.append(wheels))
    device("old", runner="emulated", runtimes={"onnxruntime": "==1.26.*"})
    for id in ("arm64-emulated", "old"):
        assert edgepack("devices", "prepare", id).code == 0
    here = provenance.versions("onnxruntime", "numpy")
    assert asked[0] == [f"numpy=={here['numpy']}", f"onnxruntime=={here['onnxruntime']}"]
    assert asked[1] == [f"numpy=={here['numpy']}", "onnxruntime==1.26.*"]
    assert edgepack("devices", "prepare", "host").out == "this computer needs no preparation\n"
    assert edgepack("devices", "prepare", "nowhere").code == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("apt-get", "#!/bin/sh\necho 'W: old' >&2; echo 'E: No network' >&2; exit 100\n", "no Python for arm64"),
        ("dpkg-deb", "#!/bin/sh\necho broken >&2; exit 2\n", "python3_arm64.deb cannot be unpacked: broken"),
        ("dpkg-deb", '#!/bin/sh\nmkdir -p "$3"\n', "hold no Python"),
    ],
)
def test_what_cannot_be_fetched_is_told_and_leaves_nothing(
    packages: Device, name: str, text: str, message: str
) -> None:
    program(name, text)
    ran = edgepack("devices", "prepare", "arm64-emulated")
    assert ran.code == 4 and message in ran.err
    assert not Path("arm64").exists() and not list(Path().glob(".arm64-*"))


def test_a_computer_without_apt_is_told(packages: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bin/apt-get").unlink()
    monkeypatch.setenv("PATH", str(Path("bin").absolute()))
    ran = edgepack("devices", "prepare", "arm64-emulated")
    assert (ran.code, "apt-get is not installed" in ran.err) == (4, True)


def test_a_folder_of_other_things_is_never_replaced(packages: Device) -> None:
    Path("arm64").mkdir()
    Path("arm64/thesis.txt").write_text("mine")
    ran = edgepack("devices", "prepare", "arm64-emulated")
    assert (ran.code, "holds other files" in ran.err) == (4, True)
    assert Path("arm64/thesis.txt").read_text() == "mine"
