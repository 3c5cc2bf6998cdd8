"""Vision transformers lose heads, feed-forward neurons and layers as encoders of text do."""

from pathlib import Path
from typing import Any

import pytest
import torch
import vision_factories as make
from torch import nn
from torch_factories import context, logits, reloaded
from vision_factories import tiny_vits as tiny_vits

from edgepack.compress.stages import prune
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.core.process import libraries
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import macs, parameters
from edgepack.models.structure.channels import channels
from edgepack.models.structure.encoder import Block, blocks
from edgepack.models.structure.surgery import outputs


def config(**changes: Any) -> prune.Config:
    return prune.Config.model_validate({"steps": 1, "recover": {"epochs": 0}, **changes})


def silence(module: nn.Module, block: Block, heads: tuple[int, ...], neurons: tuple[int, ...]) -> None:
    """What these heads and neurons say reaches nobody."""
    with torch.no_grad():
        for head in heads:
            module.get_submodule(block.output).weight[:, head * make.HEAD : (head + 1) * make.HEAD] = 0
        module.get_submodule(block.ffn_out).weight[:, list(neurons)] = 0


@pytest.mark.parametrize("kind", make.KINDS)
def test_what_contributes_nothing_goes_without_a_change(kind: str, tmp_path: Path) -> None:
    """Other heads and neurons in every layer: taylor removes exactly these, and no answer changes."""
    start = make.vit(kind)
    first, second = blocks(start.module)
    silence(start.module, first, (0, 2), tuple(range(0, 64, 2)))
    silence(start.module, second, (1, 3), tuple(range(32)))
    before = logits(start.module)
    result = prune.run(start, config(ratio="50 %"), context())
    torch.testing.assert_close(logits(result.module), before, atol=1e-4, rtol=1e-4)
    for block in blocks(result.module):
        assert (block.heads(result.module), result.module.get_submodule(block.ffn_in).out_features) == (2, 32)
        assert result.module.get_submodule(block.attention).num_attention_heads == 2
    assert torch.equal(logits(reloaded(result, tmp_path / "saved").module), logits(result.module))


@pytest.mark.parametrize("kind", make.KINDS)
def test_heads_neurons_and_layers_have_shares_of_their_own(kind: str, tmp_path: Path) -> None:
    start = make.vit(kind, depth=4)
    row = [block.name for block in blocks(start.module)]
    result = prune.run(start, config(heads="50 %", ffn="75 %", layers=(1,)), context())
    assert [block.name for block in blocks(result.module)] == [row[0], *row[2:]]
    assert result.notes[1:4] == (
        "asked for 50 % fewer heads and 75 % fewer feed-forward neurons; "
        "every layer keeps a head, and a multiple of 4 neurons",
        f"{row[0]}: 4 -> 2 heads",
        f"{row[0]}: 64 -> 16 feed-forward neurons",
    )
    exported = result.program(batch=8).module()(*context().data.train.head(8))
    with torch.no_grad():
        torch.testing.assert_close(exported, result.module(*context().data.train.head(8)), atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(reloaded(result, tmp_path / "saved").module), logits(result.module))


@pytest.mark.parametrize(("depth", "share", "left"), [(4, "25 %", 3), (4, "75 %", 1), (2, "10 %", 1)])
def test_a_fraction_of_the_layers_goes(depth: int, share: str, left: int) -> None:
    settings = config(layers=share)
    assert prune.Config.model_validate_json(settings.model_dump_json()) == settings
    assert settings.model_dump(mode="json")["layers"] == share
    assert len(blocks(prune.dry_run(make.vit(depth=depth), settings, Quantization()).module)) == left
    assert len(blocks(prune.run(make.vit(depth=depth), settings, context()).module)) == left


@pytest.mark.parametrize("wrong", ["0 %", "100 %", 0.25, "a quarter"])
def test_a_fraction_of_the_layers_leaves_some(wrong: object) -> None:
    with pytest.raises(ValueError, match="validation error"):
        config(layers=wrong)
    with pytest.raises(StageError, match="2 layers cannot be removed: the model has 2"):
        prune.dry_run(make.vit(), config(layers="90 %"), Quantization())


def test_a_number_of_layers_is_measured() -> None:
    start = make.vit(depth=3)
    middle = blocks(start.module)[1]
    with torch.no_grad():
        for part in (middle.output, middle.ffn_out):
            start.module.get_submodule(part).weight.zero_()
            start.module.get_submodule(part).bias.zero_()
    result = prune.run(start, config(layers=1), context())
    assert [edit.op for edit in result.surgery] == ["drop"] and len(blocks(result.module)) == 2
    nothing = f"{middle.name}: without it +0.0 points and +0.0000 of loss on validation"
    assert sum(note.startswith(nothing) for note in result.notes) == 1


@pytest.mark.parametrize("target", [{"params": "60 %"}, {"macs": "60 %"}], ids=str)
def test_a_target_is_met(target: dict[str, Any]) -> None:
    measure = macs if "macs" in target else lambda made: parameters(made.module)
    limit = 0.6 * measure(make.vit())
    assert 0.85 * limit < measure(prune.run(make.vit(), config(target=target), context())) <= limit


def start_of(source: str, name: str, side: int = 64) -> Candidate:
    picture = TensorSpec(name="input", shape=(3, side, side))
    signature = Signature(inputs=(picture,), labels=tuple(str(i) for i in range(10)))
    torch.manual_seed(0)
    return Candidate.start(plugins.choose("models", {source: name}), signature)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_the_published_models_lose_heads_and_neurons(name: str, tmp_path: Path) -> None:
    before = start_of("timm", name)
    made = prune.dry_run(before, config(heads="34 %", ffn="50 %", layers=3, importance="l2"), Quantization())
    assert {block.heads(made.module) for block in blocks(made.module)} == {2}
    assert len(blocks(made.module)) == 9
    assert 0.4 < parameters(made.module) / parameters(before.module) < 0.6
    picture = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(reloaded(made, tmp_path / "saved").module.eval()(picture), made.module.eval()(picture))


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_convnext_loses_channels_of_its_layer_norms(kind: str) -> None:
    if kind == "timm":
        module = libraries.timm().create_model("convnext_atto", num_classes=10, depths=(1, 1, 1, 1)).eval()
    else:
        settings = libraries.torchvision().models.convnext.CNBlockConfig
        rows = [settings(8, 16, 1), settings(16, 32, 1), settings(32, None, 1)]
        module = libraries.torchvision().models.ConvNeXt(rows, num_classes=10).eval()
    found = channels(module, (torch.rand(2, 3, 64, 64),))
    norms = {name for name, part in module.named_modules() if isinstance(part, nn.LayerNorm)}
    lost = {found.slots[at].layer for strand in found.strands for at in strand.pieces[0]}
    assert norms <= lost
    assert set(found.whole) == {[*outputs(module)][-1]}
