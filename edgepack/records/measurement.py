"""Define Measurement: one figure of one artifact, with its interval and evidence."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from edgepack.core.frozen import Frozen, Json, Moment
from edgepack.core.metrics import Evidence


class Reading(Frozen):
    """A figure before it is assigned to an artifact: see Measurement."""

    metric: str
    value: float
    low: float
    high: float
    doubts: tuple[str, ...] = ()
    samples: tuple[tuple[float, ...], ...] = ()
    detail: Json = {}


class Measurement(Frozen):
    """One metric of one artifact.

    `value`, `low` and `high` are in the metric's base unit (bytes, milliseconds, share); `low` and `high` are the 95 %
    interval, and equal `value` for what is counted exactly. `samples` are the raw values, one list per process.
    """

    metric: str
    artifact: str  # the artifact's label
    sha256: str
    value: float
    low: float
    high: float
    evidence: Evidence
    taken_at: Moment  # seconds since 1970
    reused: bool = False  # taken by an earlier build
    doubts: tuple[str, ...] = ()
    samples: tuple[tuple[float, ...], ...] = ()
    environment: Json = {}
    detail: Json = {}

    @classmethod
    def of(cls, reading: Reading, about: Mapping[str, Any]) -> "Measurement":
        """Return the measurement; `about` has the shared fields: artifact, sha256, evidence, taken_at, environment."""
        return cls(**{name: getattr(reading, name) for name in Reading.model_fields}, **about)

    @model_validator(mode="after")
    def _within_its_interval(self) -> "Measurement":
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.metric} of {self.artifact}: {self.value} is not within its interval")
        return self
