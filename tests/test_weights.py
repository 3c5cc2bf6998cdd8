"""Checkpoints as training scripts and their libraries write them, filled into the model they were saved from."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from edgepack.errors import StageError
from edgepack.models._notes import collected
from edgepack.weights import fits, load_weights

PATH = Path("weights.pth")


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))


def under(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


def loaded(content: Any, key: str | None = None, path: Path = PATH) -> tuple[nn.Module, list[str]]:
    """A fresh net filled from what is saved, and the notes of it."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
    else:
        torch.save(content, path)
    fresh = net(seed=9)
    with collected() as told:
        load_weights(fresh, path, key)
    return fresh, told


def equal(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def refused(content: Any, key: str | None = None) -> StageError:
    with pytest.raises(StageError) as failure:
        loaded(content, key)
    assert failure.value.hint
    return failure.value


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "backbone.", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model.net."],
)
def test_what_stands_before_every_name_is_left_out_and_told(prefix: str, suffix: str) -> None:
    after, told = loaded(under(prefix, net()), path=Path(f"weights{suffix}"))
    assert equal(after, net())
    assert told == [f"weights{suffix}: '{prefix}0.weight' was taken for '0.weight', and so on"]


def test_of_names_as_they_are_nothing_is_told() -> None:
    after, told = loaded(net().state_dict())
    assert equal(after, net())
    assert told == []


def test_wrappers_of_parts_are_left_out_wherever_they_stand() -> None:
    state = {re.sub(r"^(\d)\.", r"\1._orig_mod.", name): tensor for name, tensor in net().state_dict().items()}
    after, told = loaded(state)
    assert equal(after, net())
    assert "'0._orig_mod.weight' was taken for '0.weight'" in told[0]


def test_an_average_of_weights_is_loaded_without_its_count() -> None:
    averaged = AveragedModel(net())
    averaged.update_parameters(net())
    after, told = loaded(averaged.state_dict())
    assert equal(after, net())
    assert told[1] == "weights.pth: left out, as nothing of the model: 'n_averaged'"


@pytest.mark.parametrize(
    "beside",
    [
        {"loss.weight": torch.ones(3)},
        {"criterion.weight": torch.ones(3, 4), "criterion.centers": torch.ones(3, 8)},
        {
            "loss_fn.centers": torch.ones(3, 8),
            "val_metrics.confmat": torch.ones(3, 3),
            "losses.0.weight": torch.ones(3),
        },
        {"ce_loss.weight": torch.ones(3), "model.loss.weight": torch.ones(3)},
        {"val_acc.tp": torch.zeros(3, dtype=torch.int64), "val_acc.confmat": torch.zeros(3, 3)},
        {"total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
    ],
    ids=["class weights", "a loss with parameters", "by other names", "a named loss", "metrics", "a profiler"],
)
def test_what_a_training_script_keeps_beside_the_model_is_left_out_and_told(beside: dict[str, Any]) -> None:
    after, told = loaded({"state_dict": {**under("model.", net()), **beside}, "epoch": 3})
    assert equal(after, net())
    assert told[1].startswith(f"weights.pth: left out, as nothing of the model: '{next(iter(beside))}'")


@pytest.mark.parametrize(
    "extra",
    [
        "geometric.conv.weight",
        "glossary.weight",
        "lossless.weight",
        "loss_head.weight",
        "metric_fc.weight",
        "0.criterial",
    ],
)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_layer_whose_name_only_sounds_like_a_loss_is_of_another_model(extra: str, prefix: str) -> None:
    failure = refused(under(prefix, net()) | {f"{prefix}{extra}": torch.ones(3, 3)})
    assert "weights.pth is of another model" in failure.message
    assert f"'{prefix}{extra}'" in failure.message


def test_layers_beside_the_model_are_asked_about() -> None:
    state = {**under("encoder.", net()), "projector.weight": torch.ones(3, 3), "projector.bias": torch.ones(3)}
    failure = refused(state)
    assert "holds more than this model, whose weights are under 'encoder': 'projector.weight'" in failure.message
    assert "checkpoint_key: encoder" in failure.hint
    after, told = loaded(state, key="encoder")
    assert equal(after, net())
    assert "left out, as nothing of the model: 'projector.weight', 'projector.bias'" in told[1]


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"state_dict": under("", net()), "state_dict_ema": under("", net(1))}, ("state_dict", "state_dict_ema")),
        ({"model": under("", net()), "model_ema": under("module.", net(1))}, ("model", "model_ema")),
        ({"model": under("model.", net()), "ema": {"shadow": under("model.", net(1))}}, ("model", "ema.shadow")),
        ({"state_dict": {**under("net.", net()), **under("net_ema.", net(1))}}, ("net", "net_ema")),
        ({**under("student.", net()), **under("teacher.", net(1)), "step": torch.tensor(3)}, ("student", "teacher")),
    ],
    ids=["timm", "averaged", "nested", "in one dict", "at the top"],
)
def test_of_two_sets_of_weights_the_recipe_says_which(content: dict[str, Any], keys: tuple[str, str]) -> None:
    failure = refused(content)
    assert f"contains 2 sets of weights that fit this model: '{keys[0]}' and '{keys[1]}'" in failure.message
    assert f"checkpoint_key: {keys[1]}" in failure.hint
    for seed, key in enumerate(keys):
        assert equal(loaded(content, key)[0], net(seed))


def test_a_key_that_is_not_there_names_those_that_are() -> None:
    content = {"state_dict": under("model.", net()), "epoch": 3}
    assert "has nothing under 'ema', but 'model', 'state_dict'" in refused(content, "ema").message
    assert equal(loaded(content, "state_dict")[0], net())
    assert equal(loaded(content, "model")[0], net())


def test_the_same_weights_twice_are_one_set() -> None:
    assert equal(loaded({"model": under("", net()), "best": under("", net())})[0], net())


def test_a_second_set_that_does_not_fit_is_no_choice() -> None:
    other = nn.Linear(2, 2).state_dict()
    assert equal(loaded({"model": other, "net": under("", net())})[0], net())


def test_what_the_scripts_of_others_save_besides_is_read() -> None:
    content = {
        "state_dict": net().state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "best": numpy.float64(0.5),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    }
    assert equal(loaded(content)[0], net())


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {name: tensor for name, tensor in state.items() if name != "m.3.bias"},
        lambda state: {**state, "m.4.weight": torch.zeros(3, 3)},
        lambda state: {**state, "m.3.weight": torch.zeros(5, 4 * 36)},
    ],
    ids=["one less", "one more", "another width"],
)
@pytest.mark.parametrize("prefix", ["", "m."])
def test_a_prefix_makes_nothing_fit_that_does_not(change: Any, prefix: str) -> None:
    state: Mapping[str, torch.Tensor] = change(under("m.", net()))
    content = {f"{prefix}{name.removeprefix('m.')}": tensor for name, tensor in state.items()}
    assert "weights.pth is of another model" in refused(content).message
    assert not fits(net(), PATH)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "bool", "complex64", "float8_e4m3fn"])
def test_what_is_no_plain_float_is_no_weight(kind: str) -> None:
    state = {**net().state_dict(), "0.weight": net().state_dict()["0.weight"].to(getattr(torch, kind))}
    failure = refused(state)
    assert f"weights.pth is not made of float weights: '0.weight' in {kind}" in failure.message
    assert "quantized" in failure.hint


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_floats_of_another_size_become_float32_and_that_is_told(kind: str) -> None:
    state = {
        name: each.to(getattr(torch, kind)) if each.is_floating_point() else each
        for name, each in net().state_dict().items()
    }
    after, told = loaded(state)
    assert torch.equal(after.state_dict()["0.weight"], state["0.weight"].float())
    assert after.state_dict()["0.weight"].dtype == torch.float32
    assert told == [f"weights.pth: weights in {kind} were made float32"]


def test_a_count_may_be_an_average_but_no_part_of_one() -> None:
    state = net().state_dict()
    assert int(loaded({**state, "1.num_batches_tracked": torch.tensor(7.0)})[0].state_dict()[_COUNT]) == 7
    assert "'1.num_batches_tracked' in float32" in refused({**state, _COUNT: torch.tensor(7.5)}).message


_COUNT = "1.num_batches_tracked"


def test_code_in_a_checkpoint_is_not_run() -> None:
    class Touches:
        def __reduce__(self) -> Any:
            return Path.touch, (Path("touched"),)

    globals()["Touches"], Touches.__qualname__ = Touches, "Touches"
    assert "cannot be read as weights" in refused({"state_dict": net().state_dict(), "args": Touches()}).message
    assert not Path("touched").exists()
