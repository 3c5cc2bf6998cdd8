"""A build of a small U-Net on a folder of pictures with masks: from the recipe to the bundle's self-test."""

from pathlib import Path

import numpy
import pytest
from factories import edgepack
from PIL import Image

from edgepack.records.build import Build

NETS = """
import torch
from torch import nn


def conv(before, after, stride=1):
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    )


class UNet(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.outer, self.inner = conv(1, channels), conv(channels, 2 * channels, stride=2)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.joined = conv(2 * channels, channels)
        self.head = nn.Conv2d(channels, 3, 1)

    def forward(self, x):
        fine = self.outer(x)
        coarse = self.inner(fine)
        return {"out": self.head(self.joined(torch.cat([fine, self.up(coarse)], dim=1)))}


def make(channels):
    return UNet(channels)
"""
RECIPE = """
edgepack: 1
task: segmentation
model: {python: "nets:make", args: {channels: 32}}
data: {segmentation_folder: {images: a, masks: b, labels: [dark, grey, light], size: 16, resize: 18, color: grey}}
device: host
stages:
  - train:    {epochs: 4, batch_size: 8, learning_rate: 1e-2}
  - distill:  {student: {python: "nets:make", args: {channels: 24}}, epochs: 2, batch_size: 8, learning_rate: 1e-2}
  - prune:    {ratio: 50 %, steps: 1, recover: {epochs: 2, batch_size: 8, learning_rate: 1e-2}}
  - quantize: {epochs: 1, batch_size: 8}
export: [executorch, onnx]
budgets:
  size: 1 MB
  miou: {min: 60 %, max_drop: 20 %}
  accuracy.pixels: {min: 60 %}
  parity: {min: 90 %}
"""


def _write(count: int) -> None:
    """Pictures of three greys in large areas, with the class of each pixel as mask; some pixels have none."""
    random = numpy.random.default_rng(0)
    for folder in ("a", "b"):
        Path(folder).mkdir()
    for i in range(count):
        mask = random.integers(0, 3, (3, 3)).repeat(8, 0).repeat(8, 1).astype(numpy.uint8)
        Image.fromarray((40 + 80 * mask + random.integers(0, 30, mask.shape)).astype(numpy.uint8)).save(f"a/{i}.png")
        mask[:3] = 255
        Image.fromarray(mask).save(f"b/{i}.png")


@pytest.mark.slow
@pytest.mark.usefixtures("short_timings")
def test_a_recipe_becomes_a_bundle_that_passes_its_self_test() -> None:
    _write(60)
    Path("nets.py").write_text(NETS)
    Path("masks.yaml").write_text(RECIPE)
    ran = edgepack("build", "masks.yaml")
    assert ran.code == 0, ran.out + ran.err
    build = Build.read(Path("dist/masks/build.json"))
    assert {each.metric for each in build.measurements} >= {"miou", "accuracy.pixels", "parity", "size"}
    assert build.ledger[-1].parameters < 0.5 * build.ledger[1].parameters
    tested = edgepack("selftest", "dist/masks/masks.zip")
    assert tested.code == 0, tested.out + tested.err
    assert "OK: 6 outputs match those recorded at build time" in tested.out


def test_a_budget_of_another_task_is_refused() -> None:
    _write(10)
    Path("nets.py").write_text(NETS)
    Path("masks.yaml").write_text(RECIPE.replace("miou: {min: 60 %, max_drop: 20 %}", "accuracy: {min: 60 %}"))
    ran = edgepack("check", "masks.yaml")
    assert ran.code == 2 and "accuracy" in ran.err and "miou" in ran.err


def test_a_classifier_is_refused_before_anything_runs() -> None:
    _write(10)
    Path("masks.yaml").write_text(
        RECIPE.replace('model: {python: "nets:make", args: {channels: 32}}', "model: {torchvision: resnet18}")
    )
    ran = edgepack("check", "masks.yaml")
    assert ran.code == 2 and "resnet18 gives one class for a whole picture" in ran.err
