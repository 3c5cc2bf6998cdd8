"""Nets of timm as files: pruned, in fp32 and in int8, they answer as torch does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked_workers import run_here
from torch_factories import SATURATES, context

from edgepack.compress.stages import prune, quantize
from edgepack.compress.training.evaluation import predict
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.splits import Data, Split
from edgepack.export.contract import write
from edgepack.measure import evaluate
from edgepack.models.candidate import Candidate

pytestmark = pytest.mark.slow

PICTURE = TensorSpec(name="input", shape=(3, 64, 64))
SIGNATURE = Signature(inputs=(PICTURE,), labels=tuple(str(i) for i in range(4)))
PRUNE = prune.Config.model_validate({"ratio": "30 %", "steps": 1, "recover": {"epochs": 2, "batch_size": 16}})
QUANTIZE = quantize.Config.model_validate({"epochs": 1, "batch_size": 16})


def pictures(samples: int, seed: int) -> Split:
    """Each class is bright in another corner."""
    chance, targets = torch.Generator().manual_seed(seed), torch.arange(samples) % 4
    inputs = 0.5 * torch.rand(samples, *PICTURE.shape, generator=chance)
    for picture, corner in zip(inputs, targets.tolist(), strict=True):
        picture[:, 32 * (corner // 2) :, 32 * (corner % 2) :][:, :32, :32] += 0.5
    return Split(inputs=(inputs,), targets=targets)


def test_a_pruned_net_is_exported_in_fp32_and_int8(tmp_path: Path) -> None:
    name = "mobilenetv3_small_050"
    data = Data(train=pictures(96, 0), validation=pictures(32, 1), test=pictures(16, 2))
    here = replace(context(), data=data, quantization=Quantization(channel_multiple=8, int8_saturates=SATURATES))
    torch.manual_seed(0)
    narrow = prune.run(Candidate.start(plugins.choose("models", {"timm": name}), SIGNATURE), PRUNE, here)
    sizes = {}
    for how, made in (("fp32", narrow), ("int8", quantize.run(narrow.copy(), QUANTIZE, here))):
        expected = tuple(each.numpy() for each in predict(made.module, data.test))
        for format, runtime in (("onnx", "onnxruntime"), ("executorch", "executorch")):
            folder = tmp_path / f"{how}-{format}"
            folder.mkdir()
            write(made, plugins.choose("exporters", format), folder / "model")
            given = evaluate.outputs(run_here, file=folder / "model", runtime=runtime, split=data.test, folder=folder)
            evaluate.check_same(here.task, given, expected, f"{name} in {how} as {format}")
            sizes[how, format] = (folder / "model").stat().st_size
    assert all(sizes["int8", format] < 0.4 * sizes["fp32", format] for format in ("onnx", "executorch"))
