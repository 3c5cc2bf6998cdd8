"""Pruning to a target, in groups, and what else goes than a share of every layer's channels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch_factories import accuracy, context, data, learned, logits, reloaded
from torch_factories import candidate as fresh
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages import prune, train
from edgepack.config.device import Quantization
from edgepack.config.recipe import Place
from edgepack.core.errors import StageError
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import macs, parameters, stored_bytes
from edgepack.models.structure import surgery


def pruned(start: Candidate | None = None, *, latency: Any = None, **config: Any) -> Candidate:
    settings = {"recover": {"epochs": 1, "batch_size": 16}, "steps": 1, **config}
    start = start or learned("residual", width=32)
    about = context(teacher=learned("residual", width=32), latency=latency)
    about = replace(about, quantization=Quantization(channel_multiple=4, sparsity=("unstructured", "2:4")))
    return prune.run(start, prune.Config.model_validate(settings), about)


def widths(candidate: Candidate) -> set[int]:
    found = (width.get("out_channels") for width in surgery.sizes(candidate.module).values())
    return {width for width in found if width}


def test_steps_lead_to_the_same_widths() -> None:
    assert widths(pruned(ratio="75 %", steps=3)) == widths(pruned(ratio="75 %", steps=1)) == {8}


@pytest.mark.parametrize(
    ("target", "measure"),
    [
        ({"params": "40 %"}, lambda made: parameters(made.module)),
        ({"params": 9_000}, lambda made: parameters(made.module)),
        ({"macs": "30 %"}, macs),
        ({"size": "30 kB"}, lambda made: stored_bytes(made.module)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_target_is_met_with_as_many_channels_as_it_allows(target: dict[str, Any], measure: Any) -> None:
    start = learned("residual", width=32)
    wanted = prune.Config.model_validate({"target": target}).target
    assert wanted is not None
    limit = wanted.limit(measure(start))
    made = pruned(target=target, recover={"epochs": 0})
    (width,) = widths(made)
    assert measure(made) <= limit
    wider = start.narrowed((width + 4) / 32, multiple=4)
    assert measure(wider) > limit
    assert made.decided == {}


def test_a_latency_is_met_by_timing_and_its_ratio_is_kept() -> None:
    """The clock is in the test's hands: as many milliseconds as there are thousands of parameters."""

    def clock(made: Candidate) -> float:
        return parameters(made.module) / 1000

    made = pruned(target={"latency": "10 ms"}, latency=clock)
    assert clock(made) <= 10
    assert made.decided == {"ratio": "43.75 %", "target": None}
    again = pruned(**made.decided)
    assert all(torch.equal(a, b) for a, b in zip(made.module.parameters(), again.module.parameters(), strict=True))


def test_a_target_out_of_reach_names_the_closest() -> None:
    with pytest.raises(StageError, match=r"cannot reach 100 parameters: .* the closest is 667 parameters"):
        pruned(target={"params": 100})


def test_a_target_that_is_met_already_asks_for_nothing() -> None:
    whole = pruned(target={"params": 50_000})
    assert whole.notes == ("nothing to prune: the model has no more than 50,000 parameters already",)
    assert (whole.surgery, whole.decided) == ((), {})
    timed = pruned(target={"latency": "1 s"}, latency=lambda made: 2.0)
    assert timed.decided == {"target": {"params": 37_571}}
    assert pruned(**timed.decided).surgery == ()


def test_what_was_reached_is_told() -> None:
    notes = pruned(target={"params": "40 %"}, recover={"epochs": 0}).notes
    assert notes[:2] == (
        "40 % of the parameters takes 31.6 % fewer channels; every layer keeps a multiple of 4",
        "reached 14,843 parameters",
    )


def test_a_latency_that_cannot_be_reached_is_told_before_training() -> None:
    config = prune.Config.model_validate({"target": {"latency": "1 ms"}})
    with pytest.raises(StageError, match="the closest is a latency of 2 ms"):
        prune.dry_run(fresh("residual", width=32), config, Quantization(channel_multiple=4), latency=lambda made: 2.0)


def test_a_share_of_all_is_all() -> None:
    """Ten channels are no multiple of four, and still none goes where none is asked for."""
    module = fresh("residual", width=10).module
    surgery.shrink(module.eval(), data().test.head(2)[0], keep=1.0, score=surgery.first, multiple=4)
    assert surgery.sizes(module)["stem.0"]["out_channels"] == 10


def test_every_layer_is_listed_before_and_after() -> None:
    notes = pruned(ratio="50 %", exclude=("blocks.1.conv1",)).notes
    assert notes[0] == "asked for 50 % fewer channels; every layer keeps a multiple of 4"
    assert "blocks.0.conv1: 32 -> 16 channels" in notes
    assert "blocks.1.conv1: 32 channels as before" in notes
    assert "head: 3 channels as before" in notes


def test_a_spared_layer_keeps_all_that_depends_on_it() -> None:
    kept = pruned(ratio="50 %", exclude=("blocks.0.conv2",))
    sizes = surgery.sizes(kept.module)
    assert (sizes["blocks.0.conv1"]["out_channels"], sizes["stem.0"]["out_channels"]) == (16, 32)


def test_sensitivity_is_reported_for_every_group_of_layers() -> None:
    notes = [note for note in pruned(ratio="50 %", sensitivity=True).notes if note.startswith("sensitivity")]
    assert len(notes) == 3
    assert all("points at 25%" in note and "points at 50%" in note for note in notes)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_zeros_between_weights_survive_recovery(pattern: str, tmp_path: Path) -> None:
    sparse = pruned(pattern=pattern, recover={"epochs": 2, "batch_size": 16}, **_half(pattern))
    weight = sparse.module.blocks[0].conv1.weight.detach()
    assert 0.4 < float((weight == 0).float().mean()) < 0.6
    if pattern == "2:4":
        fours = weight.transpose(1, -1).reshape(-1, 4)
        assert set((fours == 0).sum(1).tolist()) == {2}
    assert accuracy(sparse.module) > 0.9
    again = reloaded(sparse, tmp_path / "sparse")
    assert torch.equal(logits(again.module), logits(sparse.module))
    later = train.run(again, train.Config(epochs=1, batch_size=16), context())
    assert torch.equal(later.module.blocks[0].conv1.weight == 0, weight == 0)


@pytest.mark.parametrize(("ratio", "steps"), [("8 %", 1), ("30 %", 3), ("80 %", 3)])
def test_as_many_weights_are_zero_as_were_asked_for(ratio: str, steps: int) -> None:
    sparse = pruned(pattern="unstructured", ratio=ratio, steps=steps, exclude=("head",))
    weights = [layer.weight for name, layer in sparse.module.named_modules() if isinstance(layer, nn.Conv2d)]
    share = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert share == pytest.approx(float(ratio.split()[0]) / 100, abs=0.005)
    assert int((sparse.module.head.weight == 0).sum()) == 0


def test_a_layer_that_begins_at_zero_learns() -> None:
    """Vision transformers begin with a head of zeros; only zeros that pruning made are kept."""
    start = fresh("residual", width=8)
    nn.init.zeros_(start.module.head.weight)
    learner = train.run(start, train.Config(epochs=1, batch_size=16), context())
    assert int((learner.module.head.weight == 0).sum()) == 0


def _half(pattern: str) -> dict[str, Any]:
    return {"ratio": "50 %"} if pattern == "unstructured" else {}


def test_zeros_make_no_sense_where_the_hardware_multiplies_them() -> None:
    config = prune.Config.model_validate({"pattern": "2:4"})
    assert "neither smaller nor faster" in prune.incompatibility(config, Place(quantization=Quantization()))
    assert prune.incompatibility(config, Place(quantization=Quantization(sparsity=("2:4",)))) == ""
    channels = prune.Config.model_validate({"ratio": "50 %"})
    assert prune.incompatibility(channels, Place(quantization=Quantization())) == ""


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "either a ratio"),
        ({"ratio": "50 %", "target": {"params": "50 %"}}, "either a ratio"),
        ({"pattern": "2:4", "ratio": "50 %"}, "half of the weights by definition"),
        ({"pattern": "unstructured", "target": {"params": "50 %"}}, "give a ratio"),
        ({"pattern": "unstructured"}, "the fraction of weights to set to zero"),
    ],
    ids=str,
)
def test_a_goal_is_given_once(config: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        prune.Config.model_validate(config)


class Grouped(nn.Module):  # type: ignore[misc]
    """A convolution in four groups between two plain ones, and a norm in groups."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, padding=1, groups=4),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(x).mean((2, 3)))
        return logits


def test_groups_lose_as_many_channels_each() -> None:
    module, example = Grouped().eval(), data().test.head(4)[0]
    worth = torch.rand(32)
    surgery.shrink(module, example, keep=0.5, score=lambda group: worth, multiple=2)
    sizes = surgery.sizes(module)
    assert sizes["body.3"] == {"in_channels": 16, "out_channels": 16, "groups": 4}
    assert sizes["body.1"] == {"num_channels": 16}
    assert module(example).shape == (4, 3)


def test_a_channel_that_says_nothing_can_go_from_a_group_without_a_change() -> None:
    module, example = Grouped().eval(), data().test.head(4)[0]
    quiet = torch.arange(32) % 8 >= 4  # the second half of every group
    with torch.no_grad():
        module.body[6].weight[:, quiet] = 0
    before = module(example)
    surgery.shrink(module, example, keep={"body.3": 0.5}, score=lambda group: (~quiet).float(), multiple=4)
    assert surgery.sizes(module)["body.3"]["out_channels"] == 16
    torch.testing.assert_close(module(example), before)


def test_a_block_is_spared_by_its_name() -> None:
    kept = pruned(ratio="50 %", exclude=("blocks.0",))
    assert surgery.sizes(kept.module)["blocks.0.conv1"]["out_channels"] == 32
    with pytest.raises(StageError, match=r"no layer matches 'blocks\.9'"):
        pruned(ratio="50 %", exclude=("blocks.9",))


def test_a_dry_run_tells_early_what_cannot_work() -> None:
    start = fresh("residual", width=32)
    for config, why in (
        ({"target": {"params": 100}}, "cannot reach"),
        ({"ratio": "1 %"}, "nothing was removed"),
        ({"ratio": "50 %", "exclude": ("blocks.7",)}, "no layer matches 'blocks.7'"),
    ):
        with pytest.raises(StageError, match=why):
            prune.dry_run(start, prune.Config.model_validate(config), Quantization(channel_multiple=4))
    cut = prune.dry_run(start, prune.Config.model_validate({"ratio": "50 %"}), Quantization(channel_multiple=4))
    assert widths(cut) == {16}
    assert widths(start) == {32}


def test_what_cannot_lose_channels_is_refused_early() -> None:
    config = prune.Config.model_validate({"ratio": "50 %"})
    with pytest.raises(StageError, match="conv: its channels are combined with the parameter 'scale'"):
        prune.dry_run(fresh("scaled", width=32), config, Quantization(channel_multiple=4))
    config = prune.Config.model_validate({"target": {"params": "50 %"}})
    with pytest.raises(StageError, match=r"cannot reach 50 % .*: conv: .* combined with the parameter 'scale'"):
        prune.dry_run(fresh("scaled", width=32), config, Quantization(channel_multiple=4))
