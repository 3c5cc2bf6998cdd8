"""A folder of sounds of three classes, each a tone of its own pitch."""

import wave
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy

from edgepack.data.datasets.audio_folder import Config

PITCHES = {"high": 3000.0, "low": 500.0, "middle": 1500.0}
RATE = 8000


def tone(pitch: float, seconds: float = 0.3, rate: int = RATE, seed: int = 0) -> Any:
    """A tone in noise, as int16; the seed moves it in time."""
    random = numpy.random.default_rng(seed)
    times = numpy.arange(round(seconds * rate)) / rate
    sound = numpy.sin(2 * numpy.pi * pitch * times + random.uniform(0, 6)) + random.normal(0, 0.1, len(times))
    return (sound * 8000).astype("<i2")


def write_sound(file: str | Path, samples: Any, rate: int = RATE, channels: int = 1, width: int = 2) -> Path:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as sound:
        sound.setparams((channels, width, rate, 0, "NONE", ""))
        sound.writeframes(samples.tobytes())
    return path


def write_folder(root: str = "sounds", count: int = 10, rate: int = RATE) -> str:
    for name, pitch in PITCHES.items():
        for i in range(count):
            file = Path(root, name, f"{i}.wav")
            write_sound(file, tone(pitch, 0.2 + 0.02 * i, rate, crc32(str(file).encode())), rate)
    return root


def configured(folder: str = "sounds", **settings: Any) -> Config:
    return Config.model_validate({"folder": folder, "rate": RATE, "seconds": 0.25, "mels": 16, **settings})
