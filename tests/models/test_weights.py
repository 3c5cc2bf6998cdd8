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
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from edgepack.core.errors import StageError
from edgepack.models.notes import collected
from edgepack.models.weights.loading import fits, load_weights

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
    with collected() as notes:
        load_weights(fresh, path, key)
    return fresh, notes


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
    after, notes = loaded(under(prefix, net()), path=Path(f"weights{suffix}"))
    assert equal(after, net())
    assert notes == [f"weights{suffix}: '{prefix}0.weight' was taken for '0.weight', and so on"]


def test_of_names_as_they_are_nothing_is_told() -> None:
    after, notes = loaded(net().state_dict())
    assert equal(after, net())
    assert notes == []


def test_wrappers_of_parts_are_left_out_wherever_they_stand() -> None:
    state = {re.sub(r"^(\d)\.", r"\1._orig_mod.", name): tensor for name, tensor in net().state_dict().items()}
    after, notes = loaded(state)
    assert equal(after, net())
    assert "'0._orig_mod.weight' was taken for '0.weight'" in notes[0]


def test_an_average_of_weights_is_loaded_without_its_count() -> None:
    averaged = AveragedModel(net())
    averaged.update_parameters(net())
    after, notes = loaded(averaged.state_dict())
    assert equal(after, net())
    assert notes[1] == "weights.pth: left out, not part of these weights: 'n_averaged'"


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
    after, notes = loaded({"state_dict": {**under("model.", net()), **beside}, "epoch": 3})
    assert equal(after, net())
    assert notes[1].startswith(f"weights.pth: left out, not part of these weights: '{next(iter(beside))}'")


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
    after, notes = loaded(state, key="encoder")
    assert equal(after, net())
    assert "left out, not part of these weights: 'projector.weight', 'projector.bias'" in notes[1]


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"state_dict": under("", net()), "state_dict_ema": under("", net(1))}, ("state_dict", "state_dict_ema")),
        ({"model": under("", net()), "model_ema": under("module.", net(1))}, ("model", "model_ema")),
        ({"model": under("model.", net()), "ema": {"shadow": under("model.", net(1))}}, ("model", "ema.shadow")),
        ({"state_dict": {**under("net.", net()), **under("net_ema.", net(1))}}, ("net", "net_ema")),
        ({**under("student.", net()), **under("teacher.", net(1)), "step": torch.tensor(3)}, ("student", "teacher")),
        (
            {"state_dict": under("model.", net()), "callbacks": {"EMA": {"ema_state_dict": under("model.", net(1))}}},
            ("state_dict", "callbacks.EMA.ema_state_dict"),
        ),
        ({"folds": [under("", net()), under("", net(1))], "best": 0.9}, ("folds.0", "folds.1")),
        ({0: under("", net()), 1: under("", net(1))}, ("0", "1")),
        ({**under("module.", net()), **under("ema.module.", net(1))}, ("module", "ema.module")),
        ({**under("module.", net()), **under("ema.", net(1)), "head.weight": torch.ones(9, 9)}, ("module", "ema")),
        ({**under("", net()), **under("ema.", net(1))}, ("", "ema")),
        ({"state_dict": {**under("", net()), **under("ema.", net(1))}}, ("state_dict", "state_dict.ema")),
        (
            {"best": under("", net()), "all": {**under("net.", net(2)), **under("ema.", net(1))}},
            ("best", "all.ema", "all.net"),
        ),
    ],
    ids=[
        "timm",
        "averaged",
        "nested",
        "in one dict",
        "at the top",
        "a callback of Lightning",
        "a list",
        "numbers",
        "an average beside a wrapper",
        "and a layer of neither",
        "an average beside the plain names",
        "the same in an entry",
        "one that is alone in its dict and two that are not",
    ],
)
def test_of_two_sets_of_weights_the_recipe_says_which(content: dict[str, Any], keys: tuple[str, ...]) -> None:
    failure = refused(content)
    named = " and ".join(f"'{key}'" for key in keys)
    assert f"contains {len(keys)} sets of weights that fit this model: {named}" in failure.message
    assert re.search(rf"checkpoint_key: '?{keys[-1]}'?$", failure.hint)
    for seed, key in enumerate(keys):
        assert equal(loaded(content, key)[0], net(seed))


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"checkpoint": {"model": {"state_dict": under("", net())}}}, ("checkpoint", "checkpoint.model.state_dict")),
        ({"a": {"b": {"c": {"state_dict": under("net.", net())}}}}, ("a", "a.b.c", "net")),
        ([under("", net())], ("0",)),
        ((under("", net()), 3), ("0",)),
        ({**under("", net()), "epoch": 3}, ("",)),
        ({**under("model.module.", net())}, ("model", "model.module")),
    ],
    ids=["an entry of entries", "four deep", "a list", "a tuple", "beside plain values", "a wrapper inside"],
)
def test_weights_are_found_as_deep_as_they_lie_and_named_by_any_part_of_the_way(
    content: Any, keys: tuple[str, ...]
) -> None:
    for key in (None, *keys):
        assert equal(loaded(content, key)[0], net())


def test_what_optimizers_keep_is_no_set_of_weights() -> None:
    made = net()
    adam = torch.optim.Adam(made.parameters())
    made(torch.zeros(2, 1, 8, 8)).sum().backward()
    adam.step()
    content = {"model": made.state_dict(), "optimizer_states": [adam.state_dict()]}
    assert equal(loaded(content)[0], made)
    assert "has nothing under 'ema', but 'model'" in refused(content, "ema").message


def test_a_file_that_is_part_of_itself_is_read() -> None:
    content: dict[str, Any] = {"state": under("", net())}
    content["again"] = [content, content]
    assert equal(loaded(content)[0], net())


def test_an_average_without_statistics_is_told_as_left_out() -> None:
    shadow = {name: tensor for name, tensor in under("", net(1)).items() if "running" not in name and "num" not in name}
    after, notes = loaded({"model": under("", net()), "ema": {"shadow": shadow}})
    assert equal(after, net())
    assert notes == ["weights.pth: 'ema.shadow' has 6 of the model's 9 tensors, and was left out"]


def test_an_average_without_names_is_told_as_left_out() -> None:
    shadow = [each.detach() for each in net(1).parameters()]
    after, notes = loaded({"model": under("", net()), "ema": {"decay": 0.9, "shadow_params": shadow}})
    assert equal(after, net())
    assert notes == [
        "weights.pth: 'ema.shadow_params' has a tensor for each of the model's 6 weights, but no names: left out"
    ]
    assert "holds list, not a state dict" in refused(shadow).message


def test_two_sets_that_cannot_be_compared_are_two() -> None:
    empty = {name: tensor.to("meta") for name, tensor in net().state_dict().items()}
    assert "contains 2 sets of weights" in refused({"a": empty, "b": {**empty}}).message
    assert "without values" in refused({"a": empty, "b": {**empty}}, "b").message


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
    failure = refused({**net().state_dict(), "0.weight": net().state_dict()["0.weight"].to(getattr(torch, kind))})
    assert f"weights.pth has weights that are not float: '0.weight' in {kind}" in failure.message
    assert {"bool": "masks or flags", "complex64": "real weights"}.get(kind, "quantized") in failure.hint


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_floats_of_another_size_become_float32_and_that_is_told(kind: str) -> None:
    state = {
        name: each.to(getattr(torch, kind)) if each.is_floating_point() else each
        for name, each in net().state_dict().items()
    }
    after, notes = loaded(state)
    assert torch.equal(after.state_dict()["0.weight"], state["0.weight"].float())
    assert after.state_dict()["0.weight"].dtype == torch.float32
    assert notes == [f"weights.pth: weights in {kind} were converted to float32"]


@pytest.mark.parametrize(("count", "whole"), [(7.0, 7), (7.5, 8), (6.7, 7)])
def test_a_count_may_be_an_average(count: float, whole: int) -> None:
    name = "1.num_batches_tracked"
    assert int(loaded({**net().state_dict(), name: torch.tensor(count)})[0].state_dict()[name]) == whole


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_bsr])
def test_sparse_weights_are_made_dense(layout: torch.layout) -> None:
    block, state = {"blocksize": (1, 2)} if layout == torch.sparse_bsr else {}, net().state_dict()
    assert equal(loaded({**state, "3.weight": state["3.weight"].to_sparse(layout=layout, **block)})[0], net())


def test_weights_without_numbers_are_refused() -> None:
    shapes = {name: tensor.to("meta") for name, tensor in net().state_dict().items()}
    assert "holds names and shapes without values: '0.weight', '0.bias'" in refused(shapes).message


def without(*names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in net().state_dict().items() if name not in names}


_LINEAR = net().state_dict()["3.weight"]
_INT8 = (100 * _LINEAR).to(torch.int8)


@pytest.mark.parametrize(
    ("state", "message", "way_out"),
    [
        ({**without(), "3.weight": _INT8, "3.weight_scale": torch.ones(1)}, "'3.weight' in int8", "quantized"),
        ({**without(), "3.weight": _INT8.view(-1, 1), "3.weight.absmax": torch.ones(8)}, "in int8", "quantized"),
        ({**without("3.weight"), "3.qweight": _INT8, "3.scales": torch.ones(3)}, "quantized weights: '3.q", "quantize"),
        (
            {**without(), "3.weight_fake_quant.scale": torch.ones(1), "3.weight_fake_quant.zero_point": torch.ones(1)},
            "observers of a model that was prepared for int8: '3.weight_fake_quant.scale'",
            "mode: qat",
        ),
        (
            {**without("3.weight"), "3.base_layer.weight": _LINEAR, "3.lora_A.default.weight": torch.ones(2, 144)},
            "LoRA adapters next to the weights: '3.lora_A.default.weight'",
            "merge_and_unload()",
        ),
        (
            {**without("3.weight"), "3.weight_orig": _LINEAR, "3.weight_u": torch.ones(3), "3.weight_v": torch.ones(9)},
            "weights in the form of spectral norm: '3.weight_u'",
            "remove_spectral_norm",
        ),
        ({**without(), "3.weight_mask": torch.ones(3, 144)}, "pruning masks next to the weights", "prune.remove"),
    ],
    ids=["int8", "4 bits", "GPTQ", "QAT", "LoRA", "spectral norm", "a mask without its weight"],
)
def test_how_weights_were_kept_is_told_rather_than_another_model(
    state: dict[str, torch.Tensor], message: str, way_out: str
) -> None:
    failure = refused(state)
    assert message in failure.message
    assert way_out in failure.hint


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_mask_of_pruning_is_made_part_of_its_weight_and_told(prefix: str) -> None:
    made = net()
    prune.random_unstructured(made[3], "weight", amount=0.5)
    after, notes = loaded(under(prefix, made))
    prune.remove(made[3], "weight")
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in after.state_dict().items())
    assert f"the two tensors that the file has of each: '{prefix}3.weight'" in notes[-1]


def test_an_attention_mask_is_none_of_pruning() -> None:
    assert "of another model" in refused({**without(), "3.attn_mask": torch.ones(3, 3)}).message


@pytest.mark.parametrize(("saved", "named"), [("safetensors", "pth"), ("pth", "safetensors"), ("pth", "PTH")])
def test_a_file_is_read_as_what_it_is_whatever_its_name(saved: str, named: str) -> None:
    loaded(net().state_dict(), path=Path(f"saved.{saved}"))
    Path(f"saved.{saved}").rename(f"weights.{named}")
    fresh = net(9)
    with collected() as notes:
        load_weights(fresh, Path(f"weights.{named}"))
    assert equal(fresh, net())
    assert notes == (["weights.pth was read as a .safetensors file"] if named == "pth" else [])


def test_of_a_whole_model_in_a_file_the_class_is_told() -> None:
    assert "it holds a torch.nn.modules.container.Sequential, which only code can create" in refused(net()).message


def test_code_in_a_checkpoint_is_not_run() -> None:
    class Touches:
        def __reduce__(self) -> Any:
            return Path.touch, (Path("touched"),)

    globals()["Touches"], Touches.__qualname__ = Touches, "Touches"
    assert "cannot be read as weights" in refused({"state_dict": net().state_dict(), "args": Touches()}).message
    assert not Path("touched").exists()
