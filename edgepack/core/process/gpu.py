"""NVIDIA GPUs that torch can train on, found through the driver: torch itself takes a second to import."""

import ctypes
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

_CUDA = re.compile(r"^cuda\s*(?::[^=]*)?=\s*['\"]([\d.]+)['\"]", re.MULTILINE)
# Attributes of a device, from the enumeration CUdevice_attribute of the CUDA driver API.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU: its name, its compute capability such as (9, 0), and the version of CUDA that torch was built with."""

    name: str
    capability: tuple[int, int]
    cuda: str

    @property
    def architecture(self) -> str:
        """
        >>> Gpu(name="NVIDIA H200", capability=(9, 0), cuda="13.0").architecture
        'sm_90'
        """
        return f"sm_{self.capability[0]}{self.capability[1]}"

    @property
    def precision(self) -> Literal["fp32", "bf16", "fp16"]:
        """Return the fastest precision that it multiplies: bf16 since Ampere, fp16 since Volta."""
        return "bf16" if self.capability >= (8, 0) else "fp16" if self.capability >= (7, 0) else "fp32"


@cache
def gpus() -> tuple[Gpu, ...]:
    """Return those that CUDA_VISIBLE_DEVICES leaves; none if torch was built without CUDA."""
    cuda = _cuda_of_torch()
    return tuple(Gpu(name=name, capability=capability, cuda=cuda) for name, capability in _devices()) if cuda else ()


def why_none() -> str:
    """Return why there is no GPU to train on."""
    return (
        "no NVIDIA GPU was found whose driver fits the installed torch"
        if _cuda_of_torch()
        else "the installed torch was built without CUDA"
    )


@cache
def _cuda_of_torch() -> str:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    found = _CUDA.search(Path(spec.origin).with_name("version.py").read_text())
    return found[1] if found else ""


def _devices() -> list[tuple[str, tuple[int, int]]]:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or _is_too_old(driver):
        return []
    return [_device(driver, number) for number in range(count.value)]


def _is_too_old(driver: ctypes.CDLL) -> bool:
    """Return whether the driver knows only an earlier CUDA than torch was built with; minor versions fit together.

    Source: https://docs.nvidia.com/deploy/cuda-compatibility/
    """
    version = ctypes.c_int()  # 13000 for 13.0
    driver.cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000 < int(_cuda_of_torch().partition(".")[0])


def _device(driver: ctypes.CDLL, number: int) -> tuple[str, tuple[int, int]]:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), which, device)
        return value.value

    return name.value.decode(errors="replace"), (attribute(_MAJOR), attribute(_MINOR))
