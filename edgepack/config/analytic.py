"""Estimate the latency of a model on a device from its operators and rates in the profile.

    time = per_run + sum over operators of
           (macs / rate of its kind + elements / rate of elementwise + bytes / bandwidth + per_operation)

Weights are read at the bandwidth of the memory where those of the whole file do not fit into the cache.
After the roofline of S. Williams, A. Waterman and D. Patterson, CACM 52(4), 2009, a roof for each kind of operator,
since kernels reach different shares of the peak. Its parts are added up: on the nets that `edgepack devices calibrate`
fits the figures to, that misses less than the larger of them does.
"""

from typing import Annotated

from pydantic import Field, field_validator

from edgepack.core.frozen import Frozen
from edgepack.core.units import Duration, Share, Size

Rate = Annotated[float, Field(gt=0)]


class Rates(Frozen):
    """Speed by kind of operator (operations.py): 10^9 multiply-accumulates a second, for elementwise 10^9 elements."""

    stem: Rate
    conv: Rate
    pointwise: Rate
    depthwise: Rate
    linear: Rate
    elementwise: Rate


class Figures(Frozen):
    """Speed of one runtime on a device."""

    fp32: Rates
    int8: Rates
    portable: Rate | None = Field(
        default=None, description="ExecuTorch's own kernels, billions of operations per second; default: as elementwise"
    )
    bandwidth: Rate = Field(description="cache bandwidth of operators, GB/s")
    memory: Rate = Field(description="memory bandwidth for weights outside the cache, GB/s")
    cache: Size = Field(description="bytes of weights that stay in the cache between inferences")
    per_operation: Duration = Field(description="overhead of each operator")
    per_run: Duration = Field(description="overhead of each inference")


class Analytic(Frozen):
    """Figures of a device for latency estimates, by runtime."""

    calibrated_from: str = Field(min_length=1, description="source of these figures")
    error: Share = Field(description="mean error of an estimate, compared with measurements")
    threads: int = Field(ge=1, description="number of runtime threads that these figures are for")
    runtimes: dict[str, Figures] = Field(min_length=1)

    @field_validator("error")
    @classmethod
    def _wrong_at_times(cls, error: float) -> float:
        if error <= 0:
            raise ValueError("no estimate is exact: give its mean error, such as 30 %")
        return error
