"""Settings of the features that a model hears instead of raw sound, and what they look like."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from edgepack.core.frozen import Frozen
from edgepack.core.units import DURATION, Duration

KEY = "log_mel"  # in a signature's preprocessing
FILE = "log_mel.py"


class LogMel(Frozen):
    """Log-mel features: energy in bands of frequencies, frame by frame."""

    window: Duration = Field(default=40.0, gt=0, le=1000, description="length of a frame")
    hop: Duration = Field(default=20.0, gt=0, le=1000, description="from the start of a frame to that of the next")
    mels: int = Field(default=40, ge=4, le=256, description="bands of frequencies")

    @model_validator(mode="after")
    def _whole(self) -> "LogMel":
        if self.window % self.hop:
            hop, window = DURATION.format(self.hop), DURATION.format(self.window)
            raise ValueError(f"a window of {window} must be one, two or more hops of {hop}")
        return self

    def samples(self, rate: int) -> dict[str, int]:
        """Return the arguments of log_mel at a rate in Hz. Raises ValueError where they fit no whole samples."""
        hop = round(self.hop * rate / 1000)
        if hop != self.hop * rate / 1000 or hop < 1:
            raise ValueError(f"a hop of {DURATION.format(self.hop)} is no whole number of samples at {rate} Hz")
        return {"rate": rate, "window": round(self.window / self.hop) * hop, "hop": hop, "mels": self.mels}

    def check(self, rate: int, samples: int) -> None:
        """Raises ValueError if a sound of so many samples has no such features."""
        from edgepack.data.sounds.log_mel import bands

        given = self.samples(rate)
        if given["window"] > samples:
            raise ValueError(f"a window has {given['window']} samples, more than the {samples} of a sound")
        empty = int((bands(rate, given["window"], self.mels).sum(axis=1) == 0).sum())
        if empty:
            raise ValueError(f"{empty} of {self.mels} mels hold no frequency of so short a window: use fewer")


def shape(samples: int, given: dict[str, int]) -> tuple[int, int]:
    """Return mels and frames of a sound.

    >>> shape(8000, {"rate": 8000, "window": 320, "hop": 160, "mels": 40})
    (40, 49)
    """
    return given["mels"], (samples - given["window"]) // given["hop"] + 1


def source() -> bytes:
    """Return the file that makes features, for an app's developer."""
    return Path(__file__).with_name(FILE).read_bytes()


def of(preprocessing: dict[str, Any]) -> dict[str, int] | None:
    """Return the arguments of log_mel that a data set describes, or None."""
    found = preprocessing.get(KEY)
    return None if found is None else {name: int(found[name]) for name in ("rate", "window", "hop", "mels")}
