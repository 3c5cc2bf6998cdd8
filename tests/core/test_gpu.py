"""GPUs as the driver tells of them. No machine of ours has one: the driver is a stand-in with the calls of its API."""

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from edgepack.core.process import gpu
from edgepack.core.process.gpu import Gpu


class Driver:
    """Answers as libcuda does: 0, and what was asked for behind the first pointer."""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13010
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = b"NVIDIA L4"
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> int:
        value._obj.value = {75: 8, 76: 9}[which]
        return 0


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    gpu.gpus.cache_clear()
    yield
    gpu.gpus.cache_clear()


def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_cuda_of_torch", lambda: "13.0")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    (found,) = gpu.gpus()
    assert found == Gpu(name="NVIDIA L4", capability=(8, 9), cuda="13.0")
    assert (found.architecture, found.precision) == ("sm_89", "bf16")


def test_a_driver_that_is_older_than_torch_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_cuda_of_torch", lambda: "14.0")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert gpu.gpus() == () and "driver" in gpu.why_none()


def test_a_torch_without_cuda_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_cuda_of_torch", lambda: "")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert gpu.gpus() == () and "without CUDA" in gpu.why_none()


def test_it_agrees_with_torch() -> None:
    import torch

    assert gpu._cuda_of_torch() == (torch.version.cuda or "")
    if not torch.cuda.is_available():
        assert gpu.gpus() == ()
    else:
        assert [each.name for each in gpu.gpus()] == [
            torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
        ]
