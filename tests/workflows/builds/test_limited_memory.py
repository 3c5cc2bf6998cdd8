"""A build on pictures that do not fit into the memory that it may use."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from factories import recipe_text
from PIL import Image

from edgepack.records.build import Build

LIMIT = 700_000_000  # bytes that each process may allocate; torch and the runtimes take most of them
COUNT, SIDE = 900, 512

NET = """
from torch import nn


def make():
    features = [nn.AvgPool2d(16), nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(8, 2))
"""


def _pictures(root: Path) -> None:
    """Reddish and greenish ones."""
    random = numpy.random.default_rng(0)
    for number in range(COUNT):
        label = number % 2
        few = random.integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
        few[..., label] = 255
        folder = root / ("red", "green")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(few).resize((SIDE, SIDE)).save(folder / f"{number}.jpg", quality=50)


@pytest.mark.slow
def test_pictures_that_do_not_fit_into_memory_are_trained_on() -> None:
    """Decoded they take more than the limit, which the system enforces, as `ulimit -d` does."""
    assert COUNT * 3 * SIDE**2 > LIMIT
    _pictures(Path("pictures"))
    Path("net.py").write_text(NET)
    text = recipe_text(
        model={"python": "net:make"},
        data={"image_folder": {"folder": "pictures", "size": SIDE, "resize": SIDE, "augment": False}},
        device="host-1t",
        stages=[{"train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-2}}],
        export=["onnx"],
        budgets={"accuracy": "90 %"},
    )
    Path("large.yaml").write_text(text)
    ran = subprocess.run(
        [sys.executable, "-m", "edgepack", "build", "large.yaml"],
        env={**os.environ, "EDGEPACK_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    built = Build.read(Path("dist", "large", "build.json"))
    assert built.exit_code == 0
    stored = [file.stat().st_size for file in Path(".edgepack/store").rglob("pixels")]
    assert stored == [COUNT * 3 * SIDE**2]  # on disk
