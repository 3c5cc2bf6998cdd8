"""Pruning of transformer encoders: attention heads, feed-forward neurons, whole layers, and what is advised against."""

import copy
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import text_factories as make
import torch
from torch import nn
from torch_factories import candidate as net
from torch_factories import context, reloaded
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages import prune, train
from edgepack.compress.training.evaluation import predict, validate
from edgepack.compress.training.numerics import deterministic
from edgepack.config.device import Quantization
from edgepack.config.recipe import Place
from edgepack.core.errors import StageError
from edgepack.core.events import Event, StepProgress
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import macs, parameters, stored_bytes
from edgepack.models.structure.encoder import Block, blocks
from edgepack.models.structure.surgery import Edit, PassOn, shrink

HEAD = 8  # channels


def about(kind: str = "bert", **changes: Any) -> Any:
    return context(data=make.text(pad=1 if kind == "roberta" else 0), **changes)


def config(**changes: Any) -> prune.Config:
    settings = {"steps": 1, "recover": {"epochs": 0, "batch_size": 16, "learning_rate": 3e-3}, **changes}
    return prune.Config.model_validate(settings)


def said(module: nn.Module) -> torch.Tensor:
    return predict(module, make.text().validation)[0]


def lively(kind: str = "bert", **changes: Any) -> Candidate:
    """Untrained, with weights so large that every head and neuron has a say."""
    made = make.encoder(kind, **changes)
    with torch.no_grad():
        for block in blocks(made.module):
            for part in (block.query, block.key, block.value, block.output, block.ffn_in, block.ffn_out):
                layer = made.module.get_submodule(part)
                layer.weight.mul_(20)
                nn.init.normal_(layer.bias, std=0.3)
    return made


def silence(module: nn.Module, block: Block, heads: tuple[int, ...], neurons: tuple[int, ...]) -> None:
    """What these heads and neurons say reaches nobody."""
    with torch.no_grad():
        for head in heads:
            module.get_submodule(block.output).weight[:, head * HEAD : (head + 1) * HEAD] = 0
        module.get_submodule(block.ffn_out).weight[:, list(neurons)] = 0


@pytest.mark.parametrize("kind", make.KINDS)
def test_what_contributes_nothing_goes_without_a_change(kind: str, tmp_path: Path) -> None:
    """Other heads and neurons in every layer: taylor removes exactly these, and no answer changes."""
    start = lively(kind)
    first, second = blocks(start.module)
    silence(start.module, first, (0, 2), tuple(range(0, 64, 2)))
    silence(start.module, second, (1, 3), tuple(range(32)))
    before = said(start.module)
    result = prune.run(start, config(ratio="50 %"), about(kind))
    torch.testing.assert_close(said(result.module), before, atol=1e-5, rtol=1e-4)
    for block in blocks(result.module):
        assert block.heads(result.module) == 2
        assert result.module.get_submodule(block.ffn_in).out_features == 32
    assert torch.equal(said(reloaded(result, tmp_path / "saved").module), said(result.module))


@pytest.mark.parametrize("kind", make.KINDS)
def test_heads_are_not_scrambled(kind: str) -> None:
    """The heads that stay attend as they did: as in the whole model with the others masked to zero."""
    whole = lively(kind)
    block = blocks(whole.module)[0]
    masked, cut = copy.deepcopy(whole.module), copy.deepcopy(whole.module)
    silence(masked, block, (0, 2), ())
    kept = torch.arange(4 * HEAD).reshape(4, HEAD)[[1, 3]].flatten()
    uneven = torch.tensor([10.0, 0.0]).repeat(2 * HEAD)  # half of a good head's channels are the worst of all
    worth = torch.where(torch.isin(torch.arange(4 * HEAD), kept), uneven, 3.0)
    shrink(cut, torch.empty(0), keep={block.query: 0.5}, score=lambda group: worth, multiple=8)
    for part in (block.query, block.key, block.value):
        old = whole.module.get_submodule(part)
        assert torch.equal(cut.get_submodule(part).weight, old.weight[kept])
    attention = {name: _attention(module, block) for name, module in (("whole", whole.module), ("cut", cut))}
    torch.testing.assert_close(attention["cut"], attention["whole"][:, [1, 3]])
    torch.testing.assert_close(said(cut), said(masked), atol=1e-5, rtol=1e-4)


def _attention(module: nn.Module, block: Block) -> torch.Tensor:
    """Where the heads of a layer look, [n, heads, length, length]."""
    seen: list[torch.Tensor] = []
    hook = module.get_submodule(block.attention).register_forward_hook(lambda layer, given, out: seen.append(out[1]))
    said(module)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("kind", make.KINDS)
def test_attention_modules_count_the_heads_they_have(kind: str, tmp_path: Path) -> None:
    result = prune.run(make.encoder(kind), config(heads="75 %"), about(kind))
    for module in (result.module, reloaded(result, tmp_path / "saved").module):
        for block in blocks(module):
            attention = module.get_submodule(block.attention)
            names = ("n_heads", "dim") if kind == "distilbert" else ("num_attention_heads", "all_head_size")
            assert [getattr(attention, name) for name in names] == [1, HEAD]
            assert attention.attention_head_size == HEAD
            assert module.get_submodule(block.ffn_in).out_features == 64


@pytest.mark.parametrize("importance", ["taylor", "l1", "l2", "random"])
def test_every_importance_is_summed_over_a_head(importance: str) -> None:
    start = lively()
    block = blocks(start.module)[0]
    with torch.no_grad():  # the largest single weight is in the head that matters least
        for part in (block.query, block.key, block.value):
            start.module.get_submodule(part).weight[:HEAD] *= 0.01
        start.module.get_submodule(block.output).weight[:, :HEAD] *= 0.01
    kept = start.module.get_submodule(block.query).weight[HEAD:].clone()
    result = prune.run(start, config(heads="25 %", importance=importance), about())
    now = result.module.get_submodule(block.query).weight
    assert now.shape == kept.shape
    assert torch.equal(now, kept) or importance == "random"


def test_each_part_has_its_own_share_or_the_ratio() -> None:
    shares = [
        ({"ratio": "50 %"}, (2, 32)),
        ({"heads": "50 %"}, (2, 64)),
        ({"ffn": "25 %"}, (4, 48)),
        ({"ratio": "50 %", "heads": "0 %"}, (4, 32)),
        ({"ratio": "50 %", "ffn": "75 %"}, (2, 16)),
        ({"ratio": "95 %"}, (1, 4)),
    ]
    for settings, left in shares:
        cut = prune.dry_run(make.encoder(), config(**settings), Quantization(channel_multiple=4))
        first, second = blocks(cut.module)
        assert (first.heads(cut.module), cut.module.get_submodule(first.ffn_in).out_features) == left
        assert (second.heads(cut.module), cut.module.get_submodule(second.ffn_in).out_features) == left


def test_steps_lead_to_the_same_widths_and_every_layer_is_listed() -> None:
    spared = "model.bert.encoder.layer.1.attention"
    result = prune.run(make.encoder(), config(ratio="75 %", steps=3, exclude=(spared,)), about())
    assert result.notes == (
        "asked for 75 % fewer heads and 75 % fewer feed-forward neurons; "
        "every layer keeps a head, and a multiple of 4 neurons",
        "model.bert.encoder.layer.0: 4 -> 1 heads",
        "model.bert.encoder.layer.0: 64 -> 16 feed-forward neurons",
        "model.bert.encoder.layer.1: 4 heads as before",
        "model.bert.encoder.layer.1: 64 -> 16 feed-forward neurons",
    )


@pytest.mark.parametrize(
    ("target", "measure"),
    [
        ({"params": "70 %"}, lambda made: parameters(made.module)),
        ({"macs": "60 %"}, macs),
        ({"size": "60 kB"}, lambda made: stored_bytes(made.module)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_target_is_met(target: dict[str, Any], measure: Any) -> None:
    start = make.encoder()
    settings = config(target=target)
    assert settings.target is not None
    limit = settings.target.limit(measure(start))
    made = prune.run(start, settings, about())
    assert 0.8 * limit < measure(made) <= limit
    assert made.notes[1].startswith("reached ")


def test_layers_that_go_count_for_a_target_of_the_whole() -> None:
    """Without one of two layers the target is met already, or needs less of a cut."""
    whole = parameters(make.encoder().module)
    met = prune.run(make.encoder(), config(layers=1, target={"params": "75 %"}), about())
    assert met.notes[-1] == "nothing to prune: the model has no more than 75 % of the parameters already"
    assert [edit.op for edit in met.surgery] == ["drop"]
    cut = prune.run(make.encoder(), config(layers=1, target={"params": "45 %"}, heads="25 %"), about())
    assert parameters(cut.module) <= 0.45 * whole
    (left,) = blocks(cut.module)
    assert left.heads(cut.module) == 3
    untouched = prune.run(make.encoder(), config(layers=1, target={"params": "75 %"}, heads="0 %"), about())
    assert untouched.notes[-1] == met.notes[-1]


def test_a_latency_is_met_by_timing_and_its_ratio_is_kept() -> None:
    def clock(made: Candidate) -> float:
        return parameters(made.module) / 1000

    limit = 0.8 * clock(make.encoder())
    made = prune.run(make.encoder(), config(target={"latency": f"{limit:.3f} ms"}), about(latency=clock))
    assert clock(made) <= limit
    again = prune.run(make.encoder(), config(**made.decided), about())
    assert torch.equal(said(again.module), said(made.module))
    settings = {"target": {"latency": f"{clock(make.encoder()) - 5:.3f} ms"}, "heads": "75 %"}
    enough = prune.run(make.encoder(), config(**settings), about(latency=clock))
    assert enough.decided == {"target": None}
    again = prune.run(make.encoder(), config(**settings | enough.decided), about())
    assert torch.equal(said(again.module), said(enough.module))


def test_a_target_out_of_reach_names_the_closest() -> None:
    why = "one head and one block of 4 neurons in every layer the closest is"
    with pytest.raises(StageError, match=why):
        prune.dry_run(make.encoder(), config(target={"params": 100}), Quantization(channel_multiple=4))


@cache
def _taught() -> Candidate:
    """Three layers that have learned, the middle one a passage: its outputs are zero, its norms change nothing."""
    made = make.encoder(num_hidden_layers=3)
    first, middle, _ = blocks(made.module)
    with torch.no_grad():
        for part in (middle.output, middle.ffn_out):
            made.module.get_submodule(part).weight.zero_()
            made.module.get_submodule(part).bias.zero_()
    still = [made.module.get_submodule(middle.name), made.module.get_submodule(f"{first.name}.output.LayerNorm")]
    for weight in (weight for part in still for weight in part.parameters()):
        weight.requires_grad_(False)
    settings = train.Config(epochs=12, learning_rate=1e-2, batch_size=16)
    with deterministic(0, 1):
        taught = train.run(made, settings, about())
    taught.module.requires_grad_(True)
    assert validate(taught.module, about()).score > 0.9
    return taught


def taught() -> Candidate:
    make.described("bert", Path("bert"), num_hidden_layers=3)  # every test has a folder of its own
    return _taught().copy()


def test_a_number_of_layers_finds_the_one_that_does_nothing(tmp_path: Path) -> None:
    before = said(taught().module)
    result = prune.run(taught(), config(layers=1), about())
    assert [edit.layer[-1] for edit in result.surgery] == ["1"]
    torch.testing.assert_close(said(result.module), before, atol=1e-4, rtol=1e-3)
    assert len(result.notes) == 3
    assert result.notes[1].endswith(
        ".layer.1: without it +0.0 points and +0.0000 of loss on validation: dropped, 1 of 1"
    )
    assert torch.equal(said(reloaded(result, tmp_path / "saved").module), said(result.module))
    again = prune.run(taught(), config(layers=1), about())
    assert again.notes == result.notes


def test_layers_go_one_after_another_measured_anew() -> None:
    events: list[Event] = []
    result = prune.run(taught(), config(layers=2), about(events=events))
    assert len(blocks(result.module)) == 1
    assert result.surgery[0].layer[-1] == "1"
    assert sum("dropped, " in note for note in result.notes) == 2
    reported = [event for event in events if isinstance(event, StepProgress) and "each layer" in event.doing]
    assert [(event.done, event.total) for event in reported] == [(done, 5) for done in range(5)]


@pytest.mark.parametrize("kind", make.KINDS)
def test_layers_go_by_their_places(kind: str, tmp_path: Path) -> None:
    start = lively(kind, **{"n_layers" if kind == "distilbert" else "num_hidden_layers": 3})
    names = [block.name for block in blocks(start.module)]
    result = prune.run(start, config(layers=(0, 2), heads="50 %"), about(kind))
    assert [block.name for block in blocks(result.module)] == [names[1]]
    assert result.notes[:2] == (f"{names[0]}: dropped, layer 0 of 3", f"{names[2]}: dropped, layer 2 of 3")
    saved = reloaded(result, tmp_path / "saved").module
    assert isinstance(saved.get_submodule(names[2]), PassOn)
    assert torch.equal(said(saved), said(result.module))
    torch.testing.assert_close(result.program(batch=8).module()(*make.text().train.head(8)), _head(result.module))


def _head(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = module(*make.text().train.head(8))
    return logits


def test_a_dry_run_drops_the_last_and_leaves_its_model_alone() -> None:
    start = make.encoder(num_hidden_layers=3)
    cut = prune.dry_run(start, config(layers=2, ratio="50 %"), Quantization(channel_multiple=4))
    assert [block.name[-1] for block in blocks(cut.module)] == ["0"]
    assert blocks(cut.module)[0].heads(cut.module) == 2
    assert len(blocks(start.module)) == 3


def test_recovery_learns_with_the_teacher() -> None:
    events: list[Event] = []
    recover = {"epochs": 4, "batch_size": 16, "learning_rate": 1e-2}
    settings = {"layers": (2,), "ratio": "50 %", "recover": recover}
    bare = prune.run(taught(), config(**settings | {"recover": {"epochs": 0}}), about())
    alone = prune.run(taught(), config(**settings), about())
    result = prune.run(taught(), config(**settings), about(teacher=taught(), events=events))
    assert validate(result.module, about()).score > 0.9
    assert validate(result.module, about()).loss < 0.2 * validate(bare.module, about()).loss
    assert not torch.equal(said(result.module), said(alone.module))
    doing = dict.fromkeys(event.doing for event in events if isinstance(event, StepProgress))
    assert list(doing) == ["running the teacher", "recovering after dropping a layer", "recovering after cut 1 of 1"]


def test_sensitivity_is_reported_for_heads_and_neurons() -> None:
    notes = prune.run(make.encoder(), config(ratio="50 %", sensitivity=True), about()).notes
    lines = [note for note in notes if note.startswith("sensitivity")]
    assert len(lines) == 4
    assert "layer.0.attention.self.query: " in lines[0]


def test_a_factorized_encoder_is_pruned_too(tmp_path: Path) -> None:
    """The outputs of a pair are those of its second layer, its inputs those of the first."""
    start = lively()
    for part in (blocks(start.module)[0].query, blocks(start.module)[0].ffn_in, blocks(start.module)[0].ffn_out):
        start = start.edited(Edit(op="split", layer=part, to={"rank": 4}))
    result = prune.run(start, config(ratio="75 %", steps=2), about())
    first = blocks(result.module)[0]
    assert [layer.out_features for layer in result.module.get_submodule(first.query)] == [4, HEAD]
    assert [layer.in_features for layer in result.module.get_submodule(first.ffn_out)] == [16, 4]
    assert torch.equal(said(reloaded(result, tmp_path / "saved").module), said(result.module))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"ratio": "50 %", "importance": "lamp"}, "importance lamp is for convolutional networks"),
        ({"ratio": "50 %", "importance": "bn_scale"}, "importance bn_scale is for"),
        ({"layers": 2}, "2 layers cannot be removed: the model has 2, and one must stay"),
        ({"layers": (0, 1)}, "2 layers cannot be removed"),
        ({"layers": (2,)}, "there is no layer 2 to remove: the layers are 0 to 1"),
        ({"heads": "10 %"}, "nothing was removed: at 10 % fewer heads no layer"),
        ({"ratio": "1 %"}, "no layer has a whole head, or a block of 4 neurons"),
        ({"ratio": "50 %", "exclude": ("model.bert.encoder.layer.7",)}, "no layer matches"),
    ],
    ids=str,
)
def test_what_an_encoder_cannot_lose_is_told_before_training(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(StageError, match=why):
        prune.dry_run(make.encoder(), config(**settings), Quantization(channel_multiple=4))
    with pytest.raises(StageError, match=why):
        prune.run(make.encoder(), config(**settings), about())


@pytest.mark.parametrize("setting", ["heads", "ffn", "layers"])
def test_other_models_have_no_heads(setting: str) -> None:
    settings = config(**{setting: 1 if setting == "layers" else "50 %"})
    with pytest.raises(
        StageError, match=f"{setting} can be removed from a transformer encoder only, which this model is not"
    ):
        prune.dry_run(net("residual"), settings, Quantization(channel_multiple=4))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"pattern": "2:4"}, "no smaller and no kernel faster; .*DistilBERT, arXiv 1910.01108"),
        ({"pattern": "unstructured", "ratio": "50 %"}, "no smaller and no kernel faster"),
        ({"layers": 1}, "move prune after distill"),
    ],
    ids=str,
)
def test_what_is_advised_against_is_done_for_a_recipe_that_insists(settings: dict[str, Any], why: str) -> None:
    place = Place(quantization=Quantization(), encoder=True, later=("distill", "quantize"))
    assert re.search(why, prune.incompatibility(config(**settings), place))
    assert prune.incompatibility(config(**settings, force=True), place) == ""


def test_no_advice_where_none_is_due() -> None:
    led = Place(quantization=Quantization(), encoder=True, earlier=("distill",), later=("distill",))
    assert prune.incompatibility(config(ratio="50 %"), led) == ""  # distillation has led, and may come again
    pictures = Place(quantization=Quantization(), later=("distill",))
    assert prune.incompatibility(config(ratio="50 %"), pictures) == ""
    assert prune.incompatibility(config(ratio="50 %", force=True), pictures) == ""
    assert "prune channels" in prune.incompatibility(config(pattern="2:4"), pictures)
    assert prune.incompatibility(config(pattern="2:4", force=True), pictures) == ""
    skipping = Place(quantization=Quantization(sparsity=("2:4",)), encoder=True)
    assert "no smaller; a student" in prune.incompatibility(config(pattern="2:4"), skipping)


def test_zeros_insisted_on_stay_in_an_encoder() -> None:
    sparse = prune.run(make.encoder(), config(pattern="2:4", force=True, recover={"epochs": 1}), about())
    weight = sparse.module.get_submodule(blocks(sparse.module)[0].query).weight
    assert set((weight.reshape(-1, 4) == 0).sum(1).tolist()) == {2}
