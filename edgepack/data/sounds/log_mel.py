"""Log-mel features of a sound, by numpy alone: a bundle whose model takes features ships this very file.

Source: S. Davis and P. Mermelstein, Comparison of Parametric Representations for Monosyllabic Word Recognition, IEEE
Transactions on Acoustics, Speech and Signal Processing 28, 1980; mel scale of D. O'Shaughnessy, 1987.
"""

from typing import Any

import numpy

FLOOR = 1e-8  # of the power in a band; a sine of full scale has a power of 0.25
LOWEST = 20.0  # Hz, where the lowest band begins
SCALE = 9.0  # makes logarithms of powers from FLOOR on about -1 to 1


def log_mel(samples: Any, *, rate: int, window: int, hop: int, mels: int) -> Any:
    """Return float32 features [..., mels, frames] of a sound, float32 [..., samples] from -1 to 1.

    Each frame of `window` samples begins `hop` samples after the one before it; `rate` is in Hz.
    """
    frames = numpy.lib.stride_tricks.sliding_window_view(samples.astype(numpy.float64), window, axis=-1)[..., ::hop, :]
    spectrum = numpy.fft.rfft(frames * weights(window), axis=-1)
    power = spectrum.real**2 + spectrum.imag**2
    logarithms = numpy.log(power @ bands(rate, window, mels).T + FLOOR) / SCALE + 1
    return numpy.moveaxis(logarithms, -1, -2).astype(numpy.float32)


def weights(window: int) -> Any:
    """Return Hann's window, periodic and with a sum of 1, [window]."""
    hann = 0.5 - 0.5 * numpy.cos(2 * numpy.pi * numpy.arange(window) / window)
    return hann / hann.sum()


def bands(rate: int, window: int, mels: int) -> Any:
    """Return how much each frequency of the spectrum counts for each band, [mels, window // 2 + 1].

    Bands are triangles that overlap by half, of equal width in mel from 20 Hz to half of the rate.
    """
    frequencies = numpy.fft.rfftfreq(window, 1 / rate)
    ends = _hertz(numpy.linspace(_mel(LOWEST), _mel(rate / 2), mels + 2))
    low, middle, high = ends[:-2, None], ends[1:-1, None], ends[2:, None]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return numpy.maximum(0, numpy.minimum(rising, falling))


def _mel(hertz: Any) -> Any:
    return 2595 * numpy.log10(1 + hertz / 700)


def _hertz(mel: Any) -> Any:
    return 700 * (10 ** (mel / 2595) - 1)
