from dataclasses import replace
from pathlib import Path
from typing import Any

import net_zoo
import pytest
import torch
from net_zoo import zoo as zoo
from pydantic import ValidationError
from torch_factories import KINDS, Kind, accuracy, candidate, context, data, learned, logits, reloaded
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages.prune import dry_run, run
from edgepack.compress.stages.prune import importance as prune_importance
from edgepack.compress.stages.prune.config import Config
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.core.events import Event, StepProgress
from edgepack.data.splits import Split
from edgepack.models.complexity import parameters
from edgepack.models.structure.surgery import outputs, sizes

IMPORTANCES = ["taylor", "l1", "l2", "lamp", "bn_scale", "random"]


def config(**changes: Any) -> Config:
    recover = {"epochs": 3, "learning_rate": 1e-2, "batch_size": 16}
    return Config.model_validate({"ratio": "50 %", "steps": 2, "recover": recover, **changes})


def shaped(split: Split, shape: tuple[int, ...]) -> Split:
    return replace(split, inputs=tuple(each.reshape(len(each), *shape) for each in split.inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_channels_go_and_the_task_stays(kind: Kind, tmp_path: Path) -> None:
    teacher = learned(kind)
    result = run(learned(kind), config(), context(teacher=teacher))
    assert accuracy(result.module) > 0.9
    assert {width.get("out_channels", 8) for width in sizes(result.module).values()} == {8}
    assert parameters(result.module) < 0.6 * parameters(teacher.module)
    assert result.notes[0].startswith("asked for 50 %")
    assert all(note.endswith((": 16 -> 8 channels", ": 3 channels as before")) for note in result.notes[1:])
    assert torch.equal(logits(reloaded(result, tmp_path / "saved").module), logits(result.module))


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_works(importance: str) -> None:
    result = run(learned(), config(importance=importance), context(teacher=learned()))
    assert accuracy(result.module) > 0.9


def test_importance_by_batch_norm_does_without_one() -> None:
    by_norm, by_size = (run(learned("mlp"), config(importance=name), context()) for name in ("bn_scale", "l2"))
    assert torch.equal(logits(by_norm.module), logits(by_size.module))


def test_important_channels_are_kept() -> None:
    """Half of the hidden channels do nothing: taylor removes exactly those, and no answer changes."""
    start = learned("mlp")
    silent = torch.arange(16) % 2 == 0
    with torch.no_grad():
        start.module[3].weight[:, silent] = 0
    before = logits(start.module)
    result = run(start, config(recover={"epochs": 0}, steps=1), context())
    torch.testing.assert_close(logits(result.module), before)


@pytest.mark.parametrize("sensitivity", [False, True])
@pytest.mark.parametrize("name", net_zoo.WITHOUT_GRADIENT)
def test_what_the_loss_does_not_depend_on_is_worth_nothing(name: str, sensitivity: bool) -> None:
    start = net_zoo.candidate(name)
    had = outputs(start.module)
    tiny, shape = data(), start.signature.inputs[0].shape
    there = context(data=replace(tiny, train=shaped(tiny.train, shape), validation=shaped(tiny.validation, shape)))
    result = run(start, config(recover={"epochs": 1}, steps=2, sensitivity=sensitivity), there)
    now = outputs(result.module)
    assert all(now[layer] == had[layer] / 2 for layer in had if had[layer] == 16)
    assert all(torch.isfinite(weight).all() for weight in result.module.parameters())


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_the_dry_run_scores_as_the_recipe_asks(importance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def noted(module: Any, importance: str, losses: Any) -> Any:
        asked.append(importance)
        return scored(module, importance, losses)

    scored = prune_importance._score
    monkeypatch.setattr(prune_importance, "_score", noted)
    for name in net_zoo.WITHOUT_GRADIENT:
        dry_run(net_zoo.candidate(name), config(importance=importance), Quantization(channel_multiple=4))
    assert asked == [importance] * len(net_zoo.WITHOUT_GRADIENT)


@pytest.mark.parametrize(("multiple", "left"), [(1, 10), (4, 8), (8, 8), (16, None)])
def test_what_is_left_is_what_the_device_likes(multiple: int, left: int | None) -> None:
    there = context(quantization=Quantization(channel_multiple=multiple))
    if left is None:
        with pytest.raises(StageError, match="nothing was removed") as failure:
            run(learned(), config(ratio="40 %"), there)
        assert "stem.0 has 16" in failure.value.message
        assert failure.value.hint == "lower channel_multiple in the device profile"  # no ratio would do
    else:
        assert run(learned(), config(ratio="40 %"), there).module.stem[0].out_channels == left


def test_each_cut_is_followed_by_recovery() -> None:
    events: list[Event] = []
    run(learned(), config(steps=3), context(events=events, quantization=Quantization(channel_multiple=1)))
    doing = dict.fromkeys(event.doing for event in events if isinstance(event, StepProgress))
    assert list(doing) == [f"recovering after cut {step} of 3" for step in (1, 2, 3)]


def test_without_recovery_statistics_are_still_fresh() -> None:
    result = run(learned(), config(recover={"epochs": 0}), context())
    assert accuracy(result.module) > 0.5  # a third is chance


def test_a_larger_ratio_is_advised_where_it_helps() -> None:
    with pytest.raises(StageError, match="nothing was removed: at 10 % fewer channels") as failure:
        run(learned(), config(ratio="10 %"), context())
    assert failure.value.hint.startswith("use a larger ratio, 13 % or more")
    assert run(learned(), config(ratio="13 %", recover={"epochs": 0}), context()).module.stem[0].out_channels == 12


def test_a_structure_that_cannot_lose_channels_is_named() -> None:
    with pytest.raises(StageError, match=r"nothing was removed: .* conv: .* combined with the parameter 'scale'"):
        run(candidate("scaled"), config(steps=1), context())


@pytest.mark.parametrize("wrong", [{"ratio": "0 %"}, {"ratio": "100 %"}, {"ratio": 0.5}, {"steps": 0}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        config(**wrong)
