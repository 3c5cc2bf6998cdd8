"""Log-mel features inside a model, of operators that every runtime has: Linear layers with fixed weights, and a log.

The spectrum is computed in two steps of short transforms: of 320 samples as 20 of 16 samples and then 16 of 20. That
takes a tenth of the weights of one matrix, and less work.
Source: J. Cooley and J. Tukey, An Algorithm for the Machine Calculation of Complex Fourier Series, 1965.
"""

from math import isqrt, log, sqrt
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepack.data.sounds.log_mel import FLOOR, SCALE, bands, weights


class LogMel(nn.Module):  # type: ignore[misc]
    """Takes sound [n, samples] from -1 to 1, and returns what data/sounds/log_mel.py does: [n, mels, frames].

    It has no trained weights, and stays in fp32: powers of loud and of quiet sounds share no int8 range.
    """

    stays_fp32 = True
    hann: Tensor
    first: Tensor
    turn: Tensor
    second: Tensor
    bands: Tensor

    def __init__(self, *, rate: int, window: int, hop: int, mels: int) -> None:
        super().__init__()
        if window % hop:
            raise ValueError(f"a window of {window} samples is no whole number of hops of {hop}")
        self.window, self.hop = window, hop
        self.rows = next(size for size in range(isqrt(window), 0, -1) if window % size == 0)
        self.columns = window // self.rows
        for name, values in self._constants(rate, mels).items():
            rows_first = numpy.ascontiguousarray(values, dtype=numpy.float32)  # ExecuTorch fails on another order
            self.register_buffer(name, torch.from_numpy(rows_first), persistent=False)

    def _constants(self, rate: int, mels: int) -> dict[str, Any]:
        """Sample n is at row n // columns, and frequency k = row + rows * j, of which those up to the half are made."""
        rows, columns = numpy.arange(self.rows), numpy.arange(self.columns)
        kept = numpy.arange(self.columns // 2 + 1)
        first = _turned(numpy.outer(rows, rows) / self.rows)
        turn = _turned(numpy.outer(columns, rows) / self.window)
        second = _turned(numpy.outer(kept, columns) / self.columns)
        frequencies = rows[:, None] + self.rows * kept
        spectrum = numpy.zeros((mels, self.window))
        spectrum[:, : self.window // 2 + 1] = bands(rate, self.window, mels)
        return {
            "hann": weights(self.window) / sqrt(FLOOR),
            "first": numpy.concatenate([first.real, first.imag]),
            "turn": numpy.stack([turn.real, turn.imag]),
            "second": numpy.block([[second.real, -second.imag], [second.imag, second.real]]),
            "bands": spectrum[:, frequencies.ravel() % self.window],
        }

    def forward(self, sound: Tensor) -> Tensor:
        frames = (sound.shape[1] - self.window) // self.hop + 1
        overlap = self.window // self.hop
        hops = sound[:, : (frames + overlap - 1) * self.hop].unflatten(1, (-1, self.hop))
        framed = torch.cat([hops[:, start : start + frames] for start in range(overlap)], dim=2) * self.hann
        columns = framed.unflatten(2, (self.rows, self.columns)).transpose(2, 3)
        real, imaginary = functional.linear(columns, self.first).chunk(2, dim=3)
        across, along = self.turn[0], self.turn[1]
        turned = torch.cat([real * across - imaginary * along, real * along + imaginary * across], dim=2)
        real, imaginary = functional.linear(turned.transpose(2, 3), self.second).chunk(2, dim=3)
        power = functional.linear((real * real + imaginary * imaginary).flatten(2), self.bands)
        # Powers are in units of FLOOR: a sum with a number as small as that is no sum to the optimizer of ONNX files.
        features: Tensor = (power + 1).log() / SCALE + (1 + log(FLOOR) / SCALE)
        return features.transpose(1, 2)


def _turned(turns: Any) -> Any:
    return numpy.exp(-2j * numpy.pi * turns)
