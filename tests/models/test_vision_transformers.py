"""Vision transformers as encoders: their layers are found, and their attention is made of separate layers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import vision_factories as make
from safetensors.torch import save_file
from torch import nn
from torch_factories import reloaded
from vision_factories import tiny_vits as tiny_vits

from edgepack.config import plugins
from edgepack.core.errors import StageError
from edgepack.core.process import libraries
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import Candidate
from edgepack.models.structure.encoder import blocks
from edgepack.models.structure.encoder.attention import SelfAttention, separated

PICTURES = (torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


def signature(side: int = 8, channels: int = 1) -> Signature:
    return Signature(inputs=(TensorSpec(name="input", shape=(channels, side, side)),), labels=("a", "b", "c"))


def plain(kind: make.Kind = "torchvision") -> nn.Module:
    """What the library makes."""
    torch.manual_seed(0)
    module = make.build(make.Config(tiny_vit=kind), signature()).eval()
    for tensor in module.parameters():
        nn.init.normal_(tensor, std=0.2)
    return module


@pytest.mark.parametrize("kind", make.KINDS)
def test_every_family_has_its_layers_found(kind: str, tmp_path: Path) -> None:
    made = make.vit(kind, depth=3)
    found = blocks(made.module)
    assert len(found) == 3
    for block in found:
        assert (block.heads(made.module), block.head_size(made.module)) == (make.HEADS, make.HEAD)
        assert made.module.get_submodule(block.ffn_in).out_features == make.NEURONS
    with torch.no_grad():
        again = reloaded(made, tmp_path / "saved").module.eval()
        assert torch.equal(again(*PICTURES), made.module.eval()(*PICTURES))


@pytest.mark.parametrize("kind", ["torchvision", "timm", "timm-deit"])
def test_separate_layers_answer_as_the_librarys_attention(kind: make.Kind) -> None:
    whole = plain(kind)
    made = separated(copy.deepcopy(whole), PICTURES)
    assert sum(isinstance(part, SelfAttention) for part in made.modules()) == 2
    assert sum(each.numel() for each in made.parameters()) == sum(each.numel() for each in whole.parameters())
    with torch.no_grad():
        torch.testing.assert_close(made(*PICTURES), whole(*PICTURES), atol=1e-5, rtol=1e-4)


def test_separating_draws_no_random_numbers_and_keeps_what_is_frozen() -> None:
    whole = plain()
    whole.encoder.layers[0].self_attention.in_proj_weight.requires_grad_(False)
    whole.encoder.layers[1].self_attention.dropout = 0.25
    state = torch.get_rng_state()
    first, second = (layer.self_attention for layer in separated(whole, PICTURES).encoder.layers)
    assert torch.equal(torch.get_rng_state(), state)
    assert not first.query.weight.requires_grad and first.query.bias.requires_grad and second.key.weight.requires_grad
    assert (first.share_dropout.p, second.share_dropout.p) == (0.0, 0.25)


class Masked(nn.Module):  # type: ignore[misc]
    """A row of layers that attend to earlier tokens only, which separate layers cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = plain("timm")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.vit._pos_embed(self.vit.patch_embed(x))
        for layer in self.vit.blocks:
            tokens = layer(tokens, is_causal=True)
        return self.vit.forward_head(tokens)


def test_attention_that_is_used_in_another_way_stays_as_it_is() -> None:
    made = separated(Masked().eval(), PICTURES)
    assert not any(isinstance(part, SelfAttention) for part in made.modules())
    assert made(*PICTURES).shape == (4, 3)


def test_rows_between_convolutions_are_no_encoder() -> None:
    made = libraries.timm().create_model("mobilevit_xxs", num_classes=3).eval()
    separated(made, (torch.rand(2, 3, 64, 64),))
    assert blocks(made) == ()


def test_neurons_behind_a_gate_or_norm_are_no_plain_network() -> None:
    timm = libraries.timm()
    gated = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    for settings in (gated, {"scale_mlp_norm": True}):
        size = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4}
        made = timm.models.VisionTransformer(**size, **settings)
        assert blocks(separated(made.eval(), PICTURES)) == ()


def test_a_checkpoint_has_the_librarys_names(tmp_path: Path) -> None:
    whole = libraries.timm().create_model("test_vit2", num_classes=3, img_size=32, in_chans=1).eval()
    save_file(whole.state_dict(), tmp_path / "own.safetensors")
    choice = plugins.choose("models", {"timm": "test_vit2", "checkpoint": str(tmp_path / "own.safetensors")})
    made, picture = Candidate.start(choice, signature(side=32)).module.eval(), torch.rand(2, 1, 32, 32)
    assert sum(isinstance(part, SelfAttention) for part in made.modules()) == len(blocks(made)) == 8
    with torch.no_grad():
        torch.testing.assert_close(made(picture), whole(picture), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ({"torchvision": "vit_b_16"}, True),
        ({"timm": "deit_tiny_patch16_224"}, True),
        ({"torchvision": "swin_t"}, False),
    ],
)
def test_what_is_advised_of_encoders_is_advised_of_them(model: dict[str, str], known: bool) -> None:
    choice = plugins.choose("models", model)
    assert choice.module.is_encoder(choice.config) is known


def saved(kind: str, **changes: Any) -> str:
    """What save_pretrained() writes of a classifier."""
    folder = make.described(kind, **changes)
    library = libraries.transformers()
    of = library.DeiTForImageClassificationWithTeacher if kind == "deit" else library.ViTForImageClassification
    of(library.AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_pretrained_weights_of_transformers_are_taken_for_other_pictures(kind: str) -> None:
    """A grey picture is one of three equal channels, and larger pictures have positions in between."""
    torch.manual_seed(0)
    folder = saved(kind, num_channels=3, id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})
    choice = plugins.choose("models", {"huggingface": folder})
    assert choice.module.trained(choice.config, signature(channels=3))
    whole = Candidate.start(choice, signature(channels=3)).module
    grey = Candidate.start(choice, signature()).module
    wide = Candidate.start(choice, signature(side=16)).module
    with torch.no_grad():
        colour = whole(PICTURES[0].expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey(*PICTURES), colour, atol=1e-5, rtol=1e-4)
        assert wide(torch.rand(2, 1, 16, 16)).shape == (2, 3)
    places = [each.model.base_model.embeddings.position_embeddings for each in (grey, wide)]
    assert places[1].shape[1] - places[0].shape[1] == 64 - 16
    torch.testing.assert_close(places[1][:, -64:].mean(1), places[0][:, -16:].mean(1), atol=2e-2, rtol=0.0)


@pytest.mark.parametrize(
    ("changes", "shape", "why"),
    [
        ({}, (16,), "needs pictures, but the data has inputs of shape [16]"),
        ({"patch_size": 16}, (1, 8, 8), "has patches of 16 x 16, but the pictures are of 8 x 8"),
        ({"num_attention_heads": 5}, (1, 8, 8), "has 5 heads, which do not divide its width of 32"),
    ],
)
def test_what_does_not_fit_the_data_is_told_without_loading(
    changes: dict[str, int], shape: tuple[int, ...], why: str
) -> None:
    choice = plugins.choose("models", {"huggingface": make.described("vit", **changes), "weights": None})
    given = Signature(inputs=(TensorSpec(name="input", shape=shape),), labels=("a", "b", "c"))
    assert why in choice.module.incompatibility(choice.config, given)
    with pytest.raises(StageError, match=why.replace("[", r"\[")):
        choice.module.build(choice.config, given)


def test_a_narrow_vision_transformer_is_refused_in_a_line() -> None:
    choice = plugins.choose("models", {"timm": "vit_tiny_patch16_224", "width": "50 %"})
    with pytest.raises(StageError, match="its attention has fixed heads") as failure:
        Candidate.start(choice, signature(side=32))
    assert len(failure.value.message) < 200
