"""Layers that derive from torch's are split where they do nothing but multiply, in their own way."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_factories import candidate, context, logits, reloaded
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages.factorize import Config, dry_run, run
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.core.process import libraries
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import Candidate


class Net(nn.Module):  # type: ignore[misc]
    """A convolution that pads by itself, one that standardises its weights, and a Linear that casts them."""

    def __init__(self) -> None:
        super().__init__()
        layers = libraries.timm().layers
        self.same = layers.Conv2dSame(1, 24, 3, stride=2)
        self.again = layers.Conv2dSame(24, 24, 3, stride=2)
        self.standard = layers.ScaledStdConv2d(24, 24, 3, padding=1)
        self.linear, self.head = layers.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.standard(torch.relu(self.again(torch.relu(self.same(x)))))
        given: torch.Tensor = self.head(torch.relu(self.linear(seen.mean((2, 3)))))
        return given


def started() -> Candidate:
    torch.manual_seed(0)
    module = Net().eval()
    with torch.no_grad():  # weights of rank 3, which a split can keep whole
        for layer in (module.again, module.linear):
            rows = layer.weight.flatten(1)
            layer.weight.copy_((torch.randn(len(rows), 3) @ rows[:3]).reshape(layer.weight.shape))
    return replace(candidate(), module=module)


def test_subclasses_that_only_multiply_are_split_without_a_change() -> None:
    before = logits(started().module)
    config = Config.model_validate({"rank": 3, "layers": ("again", "linear"), "recover": {"epochs": 0}})
    made = run(started(), config, context(quantization=Quantization(channel_multiple=1)))
    again, linear = made.module.again, made.module.linear
    assert [type(part).__name__ for part in (*again, *linear)] == ["Conv2dSame", "Conv2d", "Linear", "Linear"]
    assert not torch.equal(logits(made.module), before)
    torch.testing.assert_close(logits(made.module), before, rtol=1e-3, atol=1e-4)


def test_one_that_standardises_its_weights_is_named() -> None:
    config = Config.model_validate({"rank": 3, "layers": ("standard",)})
    with pytest.raises(StageError) as failure:
        dry_run(started(), config, Quantization())
    assert failure.value.hint == "standard: a ScaledStdConv2d does more than a Conv2d, Linear or Embedding"


@pytest.mark.parametrize("scheme", ["auto", "spatial"])
def test_a_convolution_that_pads_by_itself_is_not_split_in_space(scheme: str) -> None:
    config = Config.model_validate({"energy": "90 %", "scheme": scheme, "layers": ("again",), "recover": {"epochs": 0}})
    made = run(started(), config, context(quantization=Quantization(channel_multiple=1)))
    assert [(edit.op, edit.layer) for edit in made.surgery] == [("split", "again")]


def test_what_was_split_is_rebuilt_from_its_file(tmp_path: Path) -> None:
    picture = TensorSpec(name="input", shape=(3, 32, 32))
    signature = Signature(inputs=(picture,), labels=("a", "b", "c"))
    start = Candidate.start(plugins.choose("models", {"timm": "tf_efficientnetv2_b0"}), signature)
    made = dry_run(start, Config.model_validate({"rank": 8, "layers": ("blocks.1.0.conv_exp",)}), Quantization())
    again, given = reloaded(made, tmp_path / "saved"), torch.rand(2, 3, 32, 32)
    assert type(again.module.blocks[1][0].conv_exp[0]).__name__ == "Conv2dSame"
    with torch.no_grad():
        assert torch.equal(again.module.eval()(given), made.module.eval()(given))
