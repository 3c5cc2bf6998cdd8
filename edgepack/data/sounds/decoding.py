"""Read files of sound: 16-bit PCM in .wav by Python itself, all else by soundfile."""

import wave
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.core.errors import install, reason
from edgepack.data.folders import NOT_FETCHED, POINTERS

if TYPE_CHECKING:
    import numpy

    Sound = numpy.typing.NDArray[numpy.int16]

_WAVE = ".wav"
_OTHERS = (".flac", ".ogg", ".mp3", ".aiff", ".aif")
ENDINGS = (_WAVE, *_OTHERS)
_WIDTH = 2  # bytes of a sample
_LARGEST = 32767
_FULL = 32768  # of int16, for 1.0 in a file with floats
_FASTEST = 1_000_000  # samples of a second: a header that says more is damaged
_EXTRA = f"needs soundfile: {install('audio')}"


def _has_soundfile() -> bool:
    return find_spec("soundfile") is not None


def reads(ending: str) -> bool:
    return ending == _WAVE or (ending in _OTHERS and _has_soundfile())


def needed(ending: str) -> str:
    return "needs soundfile" if ending in _OTHERS else ""


def decoded(file: Path, rate: int, resample: bool) -> "Sound":
    """Return all samples of a sound as int16 [n], the mean of its channels. Raises ValueError saying what is wrong."""
    try:
        samples, own = _wave(file) if file.suffix.lower() == _WAVE else _by_soundfile(file)
    except OSError as error:
        raise ValueError(error.strerror or reason(error)) from error
    if not samples.size:
        raise ValueError("it is empty")
    if not 0 < own <= _FASTEST:
        raise ValueError(f"it is no sound that can be decoded: its rate is {own} Hz")
    if own != rate and not resample:
        raise ValueError(f"its rate is {own} Hz, not {rate} Hz: resample: true converts it")
    return _rounded(samples.astype("float64").mean(axis=1), own, rate)


def _wave(file: Path) -> "tuple[numpy.typing.NDArray[Any], int]":
    """Return samples [n, channels] and their rate."""
    import numpy

    with file.open("rb") as opened:
        head = opened.read(64)
        if not head:
            raise ValueError("it is empty")
        if any(head.startswith(pointer.encode()) for pointer in POINTERS):
            raise ValueError(NOT_FETCHED)
        opened.seek(0)
        try:
            with wave.open(opened) as sound:
                channels, width, rate, count, *_ = sound.getparams()
                if width != _WIDTH:
                    return _by_soundfile(file, count)
                content = sound.readframes(count)
        except (wave.Error, EOFError) as error:
            if "unknown format" in str(error):
                return _by_soundfile(file)
            raise ValueError(f"it is no sound that can be decoded: {str(error) or 'it ends too early'}") from error
    _check_whole(len(content) // (channels * _WIDTH), count)
    return numpy.frombuffer(content, "<i2").reshape(-1, channels), rate


def _check_whole(found: int, count: int) -> None:
    if found < count:
        raise ValueError(f"it is cut off: {found} of {count} samples are there")


def _by_soundfile(file: Path, count: int = 0) -> "tuple[numpy.typing.NDArray[Any], int]":
    """Return samples [n, channels] in the scale of int16, and their rate; `count` is how many there must be at least.

    They are read as floats: as int16, those of a file with floats would be cut to 0.
    """
    if not _has_soundfile():
        raise ValueError(f"it is not 16-bit PCM in a .wav file, which {_EXTRA}")
    import numpy
    import soundfile

    try:
        samples, rate = soundfile.read(file, dtype="float64", always_2d=True)
    except soundfile.SoundFileError as error:
        raise ValueError(f"it is no sound that can be decoded: {error}") from error
    if not numpy.isfinite(samples).all():
        raise ValueError("it has samples that are not finite")
    _check_whole(len(samples), count)
    return samples * _FULL, int(rate)


def _rounded(samples: "numpy.typing.NDArray[Any]", own: int, rate: int) -> "Sound":
    import numpy

    if own != rate:
        from math import gcd

        from scipy.signal import resample_poly

        common = gcd(own, rate)
        samples = resample_poly(samples, rate // common, own // common)
    rounded: Sound = numpy.clip(numpy.rint(samples), -_LARGEST - 1, _LARGEST).astype(numpy.int16)
    return rounded
