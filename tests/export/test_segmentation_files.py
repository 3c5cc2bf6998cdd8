"""Nets that give a class for each pixel, as files: narrow, pruned, in fp32 and in int8, they answer as torch does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked_workers import run_here
from torch_factories import SATURATES, context

from edgepack.compress.stages import prune, quantize, train
from edgepack.compress.training.evaluation import predict
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.splits import Data, Split
from edgepack.export.contract import write
from edgepack.measure import evaluate
from edgepack.models.candidate import Candidate

pytestmark = pytest.mark.slow

LABELS = ("dark", "light", "striped")
SIGNATURE = Signature(inputs=(TensorSpec(name="input", shape=(1, 64, 64)),), labels=LABELS)
TASK = plugins.choose("tasks", "segmentation").module.task(None, SIGNATURE)
TRAIN = train.Config.model_validate({"epochs": 2, "batch_size": 16, "learning_rate": 5e-3})
PRUNE = prune.Config.model_validate({"ratio": "30 %", "steps": 1, "recover": {"epochs": 1, "batch_size": 16}})
QUANTIZE = quantize.Config.model_validate({"epochs": 1, "batch_size": 16})


def scenes(samples: int, seed: int) -> Split:
    """Quarters of each picture are dark, light or striped."""
    chance = torch.Generator().manual_seed(seed)
    quarters = torch.randint(3, (samples, 2, 2), generator=chance)
    masks = quarters.repeat_interleave(32, 1).repeat_interleave(32, 2)
    stripes = (torch.arange(64) // 4 % 2).float()
    looks = torch.stack([torch.zeros(64), torch.ones(64), stripes])
    pictures = looks[masks[:, :, 0]].new_zeros(samples, 64, 64)
    for label, look in enumerate(looks):
        pictures += (masks == label) * look
    noise = 0.1 * torch.rand(pictures.shape, generator=chance)
    return Split(inputs=((pictures + noise)[:, None],), targets=masks.to(torch.uint8))


def _numbers(made: Candidate) -> int:
    return sum(each.numel() for each in made.module.parameters())


def test_a_narrow_net_is_pruned_and_exported_in_fp32_and_int8(tmp_path: Path) -> None:
    name = "lraspp_mobilenet_v3_large"
    data = Data(train=scenes(48, 0), validation=scenes(8, 1), test=scenes(16, 2))
    quantization = Quantization(channel_multiple=8, int8_saturates=SATURATES)
    here = replace(context(), data=data, task=TASK, quantization=quantization)
    torch.manual_seed(0)
    choice = plugins.choose("models", {"torchvision": name, "width": "25 %"})
    whole = train.run(Candidate.start(choice, TASK.signature), TRAIN, here)
    narrow = prune.run(whole.copy(), PRUNE, here)
    assert _numbers(narrow) < 0.7 * _numbers(whole)
    sizes = {}
    for how, made in (("fp32", narrow), ("int8", quantize.run(narrow.copy(), QUANTIZE, here))):
        expected = tuple(each.numpy() for each in predict(made.module, data.test))
        assert expected[0].shape == (16, 3, 64, 64)
        for format, runtime in (("onnx", "onnxruntime"), ("executorch", "executorch")):
            folder = tmp_path / f"{how}-{format}"
            folder.mkdir()
            write(made, plugins.choose("exporters", format), folder / "model")
            given = evaluate.outputs(run_here, file=folder / "model", runtime=runtime, split=data.test, folder=folder)
            evaluate.check_same(here.task, given, expected, f"{name} in {how} as {format}")
            assert TASK.agreement(given, expected).mean() > 0.95
            sizes[how, format] = (folder / "model").stat().st_size
    assert all(sizes["int8", format] < 0.6 * sizes["fp32", format] for format in ("onnx", "executorch"))
