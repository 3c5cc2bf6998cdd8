"""Every test runs in a folder of its own, with a store, seed and thread of its own; nothing reaches the user's.

EDGEPACK_TEST_CPU_FEATURES="amx_tile amx_bf16 avx512_bf16" make test    runs them as on a processor with these features
besides its own: /proc/cpuinfo says so, in the processes that tests start too. Those of int8 products (avx512_vnni,
amx_int8) are left out: with them weights get 8 bits, and where AVX2 multiplies those its products saturate.
"""

import gc
import os
import runpy
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).parent.parent
SIMULATED = Path(__file__).parent / "support" / "cpu_features"
pytest_plugins = ["limits", "short_timings"]
# The second makes the build that several of the others share, while the first is at its own.
LONGEST = (
    *("test_quickstart", "test_run_step", "test_xnnpack", "test_recipes", "test_pipeline", "test_interrupted_builds"),
    *("test_prune_timm", "test_processes", "test_quantize", "test_detection_builds", "test_segmentation_files"),
    *("test_tasks", "test_limited_memory", "test_failing_builds", "test_observers", "test_families"),
)

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported anywhere
# A module that a test writes again within a second would be taken for the one compiled before, if its size is the same.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # this process does write what it compiles, until it runs tests
gc.disable()  # collecting imports a lot, and nothing of it goes again
# What this process starts inherits it, a worker of xdist among them.
if (features := os.environ.get("EDGEPACK_TEST_CPU_FEATURES", "")) and "CPU_FEATURES_ADDED" not in os.environ:
    os.environ["CPU_FEATURES_ADDED"] = features
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SIMULATED), os.environ.get("PYTHONPATH", ""))))
    runpy.run_path(str(SIMULATED / "sitecustomize.py"))


@cache
def _shipped() -> dict[str, bytes]:
    """The shipped recipes and devices, read once: thousands of tests get a copy."""
    files = [*PROJECT.glob("recipes/*.yaml"), *PROJECT.glob("devices/*.yaml")]
    return {str(file.relative_to(PROJECT)): file.read_bytes() for file in files}


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: empty but for the shipped recipes and devices, with nothing of the environment's edgepack."""
    for name in list(os.environ):
        if name.startswith(("EDGEPACK_", "GITHUB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("EDGEPACK_THREADS", "1")
    monkeypatch.setenv("EDGEPACK_SSH_CONFIG", os.devnull)  # no test reaches a board that the user has
    for folder in ("recipes", "devices"):
        (tmp_path / folder).mkdir()
    for name, content in _shipped().items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path) -> Iterator[None]:
    """What a test imports from its own folder is unknown to the next one, which may have a module of the same name."""
    before, path = {*sys.modules}, [*sys.path]
    yield
    sys.path[:] = path
    for name in [name for name in {*sys.modules} - before if _is_below(sys.modules[name], tmp_path)]:
        del sys.modules[name]


def _is_below(module: ModuleType, folder: Path) -> bool:
    held = getattr(module, "__dict__", {})  # anything may stand there, None too
    places = [held.get("__file__") or "", *(held.get("__path__") or ())]
    return any(Path(place).is_relative_to(folder) for place in places)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: with several processes none of them is waited for at the end."""
    assert all(next(PROJECT.glob(f"tests/**/{name}.py"), None) for name in LONGEST), "a file of LONGEST is gone"
    last = len(LONGEST)
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else last)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """From here on tests write modules, and leave garbage; what was imported is not looked through for it again."""
    sys.dont_write_bytecode = True
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


def pytest_report_header() -> str:
    from edgepack.core.provenance import versions

    packages = ("torch", "torchvision", "torchao", "executorch", "torch-pruning", "onnx", "onnxruntime")
    return ", ".join(f"{name} {version}" for name, version in versions(*packages).items())
