"""How a build computes: what a recipe asks for, and the hardware that its trainings get on this computer."""

import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from edgepack.core import provenance
from edgepack.core.errors import DeviceError, RecipeError
from edgepack.core.frozen import Frozen, Json
from edgepack.core.process.gpu import Gpu, gpus, why_none

Precision = Literal["fp32", "bf16", "fp16"]
AskedPrecision = Literal["auto", "fp32", "bf16", "fp16"]


class Compute(Frozen):
    """The settings `compute:` of a recipe. All but `workers` change the weights, and are part of the keys of steps."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where models are trained; auto: on an NVIDIA GPU if there is one"
    )
    precision: AskedPrecision = Field(
        default="auto",
        description="of trainings whose stage sets none; auto: fp32 on a CPU, bf16 or fp16 on a GPU. fp16 is for GPUs",
    )
    processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="processes that train together, each a part of every batch, on a GPU of its own or sharing the CPU",
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="parts of a batch that are computed one after the other, so that a large one fits into the memory",
    )
    compile: bool = Field(default=False, description="train with torch.compile, which takes a minute to begin")
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=128)] = Field(
        default="auto",
        description="number of processes that read samples which are not held in memory; 0: the build reads itself",
    )


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What models are trained on, and how; `gpu` is None on the CPU."""

    gpu: Gpu | None = None
    precision: Precision = "fp32"
    processes: int = 1
    accumulate: int = 1
    compile: bool = False

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"

    @property
    def parts(self) -> int:
        """Return the number of parts into which each batch is cut."""
        return self.processes * self.accumulate

    @property
    def threads(self) -> int:
        """Return the number of threads of each process."""
        return provenance.threads() if self.gpu else max(1, provenance.threads() // self.processes)

    def facts(self) -> Json:
        """Return what every result depends on: the processor and its threads, or the class of the GPU."""
        return {"gpu": self.gpu.architecture, "cuda": self.gpu.cuda} if self.gpu else provenance.compute()

    def of_training(self) -> Json:
        """Return what trainings depend on besides, as far as it is not the default."""
        return {name: value for name, value in self._settings().items() if value != getattr(_PLAIN, name)}

    def plain(self) -> Json:
        """Return the settings of a recipe that give this again."""
        precision = {"precision": self.precision} if self.gpu else {}  # what a GPU uses by itself depends on it
        return {"device": self.device, **precision, **self.of_training()}

    def describe(self) -> str:
        """
        >>> Hardware(gpu=Gpu(name="NVIDIA H200", capability=(9, 0), cuda="13.0"), precision="bf16").describe()
        'NVIDIA H200 (sm_90, CUDA 13.0), bf16'
        >>> Hardware(processes=2).describe()
        'CPU, fp32, 2 processes'
        """
        where = f"{self.gpu.name} ({self.gpu.architecture}, CUDA {self.gpu.cuda})" if self.gpu else "CPU"
        more = [
            *([f"{self.processes} processes"] if self.processes > 1 else []),
            *([f"batches in {self.accumulate} parts"] if self.accumulate > 1 else []),
            *(["compiled"] if self.compile else []),
        ]
        return ", ".join([where, self.precision, *more])

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("precision", "processes", "accumulate", "compile")}


_PLAIN = Hardware()


def hardware(compute: Compute) -> Hardware:
    """Return what this computer has for these settings.

    Raises DeviceError where it lacks the GPUs asked for, RecipeError where the CPU cannot do what is asked.
    """
    found = () if compute.device == "cpu" else gpus()
    gpu = found[0] if found else None
    if compute.device == "cuda" and gpu is None:
        raise DeviceError(f"compute.device is cuda, but {why_none()}", "install what is missing, or use device: auto")
    if gpu and compute.processes > len(found):
        raise DeviceError(
            f"compute.processes is {compute.processes}, but there are {len(found)} GPUs: each process needs its own",
            f"use processes: {len(found)}",
        )
    cores = len(os.sched_getaffinity(0))
    if gpu is None and compute.processes > cores:
        raise RecipeError(
            f"compute.processes is {compute.processes}, but {cores} cores may be used", f"use processes: {cores}"
        )
    if gpu is None and compute.precision == "fp16":
        raise RecipeError("compute.precision: fp16 is for GPUs, and this build trains on the CPU", "use fp32 or bf16")
    own = gpu.precision if gpu else "fp32"
    return Hardware(
        gpu=gpu,
        precision=own if compute.precision == "auto" else compute.precision,
        processes=compute.processes,
        accumulate=compute.accumulate,
        compile=compute.compile,
    )
