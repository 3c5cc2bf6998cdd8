"""Noisy scans made clean: a task of its own, with the data and the network for it.

    task: {python: "denoising:Denoising"}

A picture goes in and a picture comes out: edgepack has no such task, and this class is all that it takes.
"""

from typing import Any

import numpy
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional

import edgepack

Tensors = tuple[Tensor, ...]
Arrays = tuple[Any, ...]  # of numpy
SIDE, NOISE = 32, 0.2  # of the pictures; standard deviation


class Denoising(edgepack.Task):
    METRICS = {"psnr": edgepack.score("peak signal-to-noise ratio of test samples in dB", edgepack.NUMBER)}

    class Config(BaseModel):
        within: float = 0.02  # difference of a pixel, of a range of 1, that nobody sees

    def outputs(self) -> tuple[edgepack.TensorSpec, ...]:
        return (edgepack.TensorSpec(name="clean", shape=(1, SIDE, SIDE)),)

    def problem(self, targets: Tensor) -> str:
        return "" if targets.shape[1:] == (1, SIDE, SIDE) else f"targets have the shape {list(targets.shape)}"

    def loss(self, outputs: Tensors, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs[0], targets)

    def meter(self) -> edgepack.Mean:
        def decibels(outputs: Tensors, targets: Tensor) -> Tensor:
            return -10 * (outputs[0] - targets).square().mean((1, 2, 3)).clamp(min=1e-10).log10()

        return edgepack.Mean({"psnr": decibels})

    def agreement(self, outputs: Arrays, reference: Arrays) -> Any:
        return (abs(outputs[0] - reference[0]) <= self.config.within).mean(axis=(1, 2, 3))


def load() -> dict[str, tuple[Tensor, Tensor]]:
    """Return scanned digits, enlarged, with noise of a fixed seed; the scans themselves are the targets."""
    from sklearn.datasets import load_digits

    scans = torch.from_numpy(load_digits().images.astype("float32"))[:, None] / 16
    clean = functional.interpolate(scans, size=(SIDE, SIDE), mode="bilinear").clamp(0, 1)
    noise = numpy.random.RandomState(0).normal(0, NOISE, clean.shape).astype("float32")
    noisy = clean + torch.from_numpy(noise)
    parts = {"train": slice(0, 1200), "validation": slice(1200, 1450), "test": slice(1450, None)}
    return {part: (noisy[rows], clean[rows]) for part, rows in parts.items()}


class Net(nn.Module):
    """A U-Net of two sizes: what is seen at half of the size comes back through a transposed convolution, and is read
    beside what was seen at the whole.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.top = _layer(nn.Conv2d(1, width, 3, padding=1), width)
        self.down = _layer(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), 2 * width)
        self.deep = _layer(nn.Conv2d(2 * width, 2 * width, 3, padding=1), 2 * width)
        self.up = _layer(nn.ConvTranspose2d(2 * width, width, 2, stride=2), width)
        self.joined = _layer(nn.Conv2d(2 * width, width, 3, padding=1), width)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, picture: Tensor) -> Tensor:
        whole = self.top(picture)
        up = self.up(self.deep(self.down(whole)))
        clean: Tensor = self.head(self.joined(torch.cat([whole, up], 1)))
        return clean


def _layer(convolution: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


def net(width: int = 32) -> Net:
    return Net(width)
