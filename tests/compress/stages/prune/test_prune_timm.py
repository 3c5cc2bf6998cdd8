"""Nets of timm, whose layers derive from torch's, lose channels and answer right afterwards."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_factories import reloaded

from edgepack.compress.stages import prune
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import parameters
from edgepack.models.structure.channels import channels
from edgepack.models.structure.dependency_groups import survey
from edgepack.models.structure.surgery import outputs, shrink

QUICK = ("resnet18", "mobilenetv3_small_050", "regnetx_002", "tf_efficientnetv2_b0")
SLOW = (
    *("resnet26d", "resnext26ts", "mobilenetv2_050", "efficientnet_lite0", "efficientnet_b0", "mnasnet_small"),
    *("ghostnet_050", "hardcorenas_a", "mobileone_s0", "repvgg_a0", "densenet121", "vgg11_bn", "dla34"),
)
# Layers that keep all their channels besides the last one, in nets of other kinds: a part of the reason.
WHOLE = {
    "nf_resnet26": ("stem.conv", "its weight is read by other code at 'stem.conv', "),
    "resnetblur50": ("layer2.0.conv2", "its channels are mixed by a weight that is computed at 'layer2.0.aa', "),
}


def start(name: str, side: int = 64) -> Candidate:
    picture = TensorSpec(name="input", shape=(3, side, side))
    signature = Signature(inputs=(picture,), labels=tuple(str(i) for i in range(10)))
    torch.manual_seed(0)
    return Candidate.start(plugins.choose("models", {"timm": name}), signature)


def stirred(module: nn.Module) -> nn.Module:
    """Give norms other statistics and scales than those of an untrained net: there a lost channel would not show."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight.data, part.bias.data, part.running_mean, part.running_var):
                tensor.uniform_(0.5, 1.5)
    return module.eval()


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_layer_but_the_last_loses_channels(name: str, tmp_path: Path) -> None:
    before = start(name)
    had, picture = outputs(before.module), torch.rand(2, 3, 64, 64)
    config = prune.Config.model_validate({"ratio": "30 %", "importance": "l2"})
    made = prune.dry_run(before.copy(), config, Quantization(channel_multiple=1))
    now = outputs(made.module)
    assert [layer for layer in had if now[layer] == had[layer]] == [[*had][-1]]
    assert 0.45 < parameters(made.module) / parameters(before.module) < 0.55
    with torch.no_grad():
        again = reloaded(made, tmp_path / "saved").module.eval()
        assert torch.equal(again(picture), made.module.eval()(picture))
        _check_narrower_as_without_channels(stirred(before.module), picture)


def _check_narrower_as_without_channels(module: nn.Module, picture: torch.Tensor) -> None:
    """Without one channel of each group a net answers as where nothing reads these."""
    whole, muted = module(picture), copy.deepcopy(module)
    found = channels(module, (picture,))
    gone = [strand.pieces[-1] for strand in found.strands]
    channels(muted, (picture,)).mute(gone)
    found.cut(gone)
    expected = muted(picture)
    limit = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(module(picture), expected, rtol=0.0, atol=limit)
    assert not torch.allclose(whole, expected, rtol=0.0, atol=10 * limit)


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_lose_channels_is_told_with_module_and_line(name: str) -> None:
    layer, why = WHOLE[name]
    module = start(name).module
    assert why in survey(module.eval(), (torch.rand(2, 3, 64, 64),)).whole[layer]


def test_a_net_without_a_layer_to_prune_ends_with_a_way_out() -> None:
    """Its convolutions standardise their weights: with fewer inputs these would be others."""
    with pytest.raises(StageError, match=r"no layer can lose channels: stem.conv: .* at 'stem.conv', std_conv") as told:
        prune.dry_run(start("nf_resnet26"), prune.Config.model_validate({"ratio": "30 %"}), Quantization())
    assert told.value.hint == "use quantize or factorize, a smaller model, or remove prune"


def test_the_scales_of_norms_with_an_activation_rank_their_channels() -> None:
    module, picture = start("mobilenetv3_small_050").module.eval(), torch.rand(2, 3, 64, 64)
    block = module.blocks[1][0]
    assert type(block.bn1).__name__ == "BatchNormAct2d"
    worth = torch.rand(block.conv_pw.out_channels) + 0.5
    with torch.no_grad():
        block.bn1.weight.copy_(worth)
        block.bn2.weight.copy_(worth)
    score = plugins.load("importances", "bn_scale").score()
    shrink(module, picture, keep={"blocks.1.0.conv_pw": 0.5}, score=score, multiple=1)
    assert torch.equal(block.bn1.weight, worth[worth > worth.median()])
