"""Encoders in int8: their Linear layers and embedding tables, with activations that are measured at run time."""

import copy
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import text_factories as make
import torch
from caching import cached
from torch import fx, nn
from torch_factories import BITS, context, reloaded
from torch_factories import candidate as convolutions
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages.quantize import Config, dry_run, run
from edgepack.compress.stages.quantize.capture import capture
from edgepack.compress.stages.quantize.contract import Scheme
from edgepack.compress.stages.quantize.convert import converted
from edgepack.compress.stages.quantize.observers import freeze_ranges, prepare
from edgepack.compress.training import evaluation, numerics
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.models.candidate import Candidate

aten = torch.ops.aten
DYNAMIC = Scheme(bits=BITS, dynamic=True, linear_only=True)


def encoder(kind: str = "bert") -> Candidate:
    """Of one layer, whose parts are those of every other."""
    return make.encoder(kind, layers=1)


def answers(module: nn.Module, kind: str = "bert") -> torch.Tensor:
    return evaluation.predict(module, make.text(pad=pad(kind)).validation)[0]


def pad(kind: str) -> int:
    return 1 if kind == "roberta" else 0


@cached
def made(kind: str = "bert", *, activations: str = "auto", **config: Any) -> tuple[Candidate, torch.Tensor]:
    """Quantized, and what the float model answered; shared, so not to be changed."""
    start, settings = encoder(kind), Config.model_validate({"mode": "ptq", "activations": activations, **config})
    before = answers(start.module, kind)
    return run(start, settings, context(data=make.text(pad=pad(kind)))), before


def off(result: Candidate, before: torch.Tensor, kind: str = "bert") -> float:
    return float((answers(result.module, kind) - before).norm() / before.norm())


def calls(result: Candidate, target: Any) -> list[fx.Node]:
    return [node for node in result.module.graph.nodes if node.target is target]


def is_int8(node: fx.Node) -> bool:
    """Whether a weight or table is read from int8."""
    return "dequantize" in str(node.target)


@pytest.mark.parametrize("kind", make.KINDS)
@pytest.mark.parametrize("activations", ["auto", "static"])
def test_every_kind_answers_as_before(kind: str, activations: str) -> None:
    result, before = made(kind, activations=activations)
    assert result.form == "exported"
    assert off(result, before, kind) < (0.06 if activations == "static" or BITS < 8 else 0.03)


@pytest.mark.parametrize("kind", make.KINDS)
def test_every_linear_and_table_is_int8_and_what_lies_between_is_float(kind: str) -> None:
    result, _ = made(kind)
    layers = [layer for layer in encoder(kind).module.modules() if isinstance(layer, nn.Linear)]
    linears, tables = calls(result, aten.linear.default), calls(result, aten.embedding.default)
    assert len(linears) == len(layers) and all(is_int8(node.args[1]) and is_int8(node.args[0]) for node in linears)
    assert len(tables) == (2 if kind == "distilbert" else 3) and all(is_int8(node.args[0]) for node in tables)
    between = [
        node for kind in (aten.layer_norm, aten.softmax, aten.gelu, aten.add, aten.matmul) for node in of(result, kind)
    ]
    assert len(between) > 10 and not any(is_int8(feed) for node in between for feed in node.all_input_nodes)
    wide = [each for each in result.module.state_dict().values() if each.dim() > 1 and each.is_floating_point()]
    assert not wide


def of(result: Candidate, packet: Any) -> list[fx.Node]:
    return [node for name in packet.overloads() for node in calls(result, getattr(packet, name))]


def test_dropout_is_not_at_work() -> None:
    dropouts = calls(made()[0], aten.dropout.default)
    assert not any(node.args[2] for node in dropouts)
    torch.testing.assert_close(answers(made()[0].module), answers(made()[0].module))


def test_dynamic_ranges_need_no_calibration() -> None:
    """What it was calibrated with makes no difference."""
    one = run(encoder(), Config(mode="ptq", calibration=1), context(data=make.text()))
    assert torch.equal(answers(one.module), answers(made()[0].module))


def test_dynamic_is_closer_than_static() -> None:
    """On inputs of another range than calibration saw."""
    start = make.encoder()
    for layer in start.module.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.uniform_(layer.weight, 0.2, 3)
    before = answers(start.module)
    few = context(data=make.text(4))
    kinds = [run(start.copy(), Config(mode="ptq", activations=kind), few) for kind in ("dynamic", "static")]
    assert off(kinds[0], before) < off(kinds[1], before)


def test_embedding_tables_can_stay_float() -> None:
    result, before = made(embeddings=False)
    assert not any(is_int8(node.args[0]) for node in calls(result, aten.embedding.default))
    assert off(result, before) < 0.03
    assert any("embedding tables" in note for note in result.notes)


def test_layers_and_tables_left_in_fp32_are_float_and_the_rest_int8() -> None:
    result, _ = made(fp32=("*word_embeddings", "*.query", "model.classifier"))
    float_layers = [node for node in calls(result, aten.linear.default) if not is_int8(node.args[1])]
    float_tables = [node for node in calls(result, aten.embedding.default) if not is_int8(node.args[0])]
    assert (len(float_layers), len(float_tables)) == (2, 1)
    assert {note for note in result.notes if "*" in note} == {"kept in fp32: *word_embeddings", "kept in fp32: *.query"}


def test_a_table_can_be_all_that_is_left_to_quantize() -> None:
    everything = ("*.query", "*.key", "*.value", "*.dense", "model.classifier")
    result = dry_run(encoder(), Config(fp32=everything), Quantization())
    assert all(is_int8(node.args[0]) for node in calls(result, aten.embedding.default))
    with pytest.raises(StageError, match="fp32 names every layer"):
        dry_run(encoder(), Config(fp32=everything, embeddings=False), Quantization())


def test_convolutions_have_no_dynamic_ranges() -> None:
    with pytest.raises(StageError, match=r"cannot be dynamic in a model with convolutions.*\n.*static"):
        dry_run(convolutions(), Config(activations="dynamic"), Quantization())


def test_linear_layers_have_them_in_any_model() -> None:
    result = dry_run(convolutions("mlp"), Config(activations="dynamic"), Quantization())
    assert [is_int8(node.args[0]) for node in calls(result, aten.linear.default)] == [True, True]


def test_where_the_device_saturates_weights_have_7_bits() -> None:
    saturates = context(data=make.text(), quantization=Quantization(int8_saturates=True))
    result = run(encoder(), Config(mode="ptq"), saturates)
    weights = [each for each in result.module.state_dict().values() if each.dtype == torch.int8]
    assert {int(weight.abs().max()) for weight in weights} == {63}
    assert any("7 bits" in note for note in result.notes)


@cache
def trained() -> Candidate:
    settings = Config(mode="best", epochs=8, learning_rate=1e-2, batch_size=16)
    with numerics.deterministic(0, 1):
        return run(encoder(), settings, context(data=make.text()))


def test_training_with_int8_in_the_loop_learns() -> None:
    task, data = context().task, make.text()
    assert evaluation.evaluate(trained().module, data.validation, task) > 0.8
    assert trained().decided == {"mode": "qat"}
    assert all(is_int8(node.args[0]) for node in calls(trained(), aten.embedding.default))


def prepared() -> fx.GraphModule:
    graph = prepare(capture(encoder(), ()), DYNAMIC, training=True)
    graph(*make.text().train.head(4))
    return graph


def test_a_table_that_shrank_in_training_is_measured_as_it_is() -> None:
    start = prepared()
    before = converted(start)
    with torch.no_grad():
        table = start.get_parameter("model.bert.embeddings.word_embeddings.weight")
        table.mul_(0.25)
    start(*make.text().train.head(4))
    (was, now) = (scales(each)[0] for each in (before, converted(start)))
    torch.testing.assert_close(now[1:], 0.25 * was[1:])  # the row of padding is all zeros


def scales(module: fx.GraphModule) -> list[torch.Tensor]:
    found = [node.args[0] for node in module.graph.nodes if node.target is aten.embedding.default]
    return [module.get_buffer(node.args[1].target) for node in found]


def test_frozen_ranges_leave_the_dynamic_ones_dynamic() -> None:
    free = prepared()
    frozen = copy.deepcopy(free)
    freeze_ranges(frozen)
    others = make.text(seed=9).train.head(6)
    torch.testing.assert_close(frozen(*others), free(*others))


def test_a_saved_encoder_answers_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    result, _ = made()
    inputs = make.text().validation.head(4)
    again = reloaded(result, tmp_path / "saved")
    assert torch.equal(again.module(*inputs), result.module(*inputs))
    torch.save((inputs, result.module(*inputs).detach()), tmp_path / "answers")
    script = (
        "import sys, torch; from pathlib import Path; from edgepack.models.candidate import Candidate;"
        "(inputs, expected) = torch.load(sys.argv[1] + '/answers', weights_only=True);"
        "assert torch.equal(Candidate.load(Path(sys.argv[1]) / 'saved').module(*inputs), expected)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True)


def test_what_is_said_of_a_text_does_not_depend_on_its_neighbours() -> None:
    """As on the device, where the range of an activation is that of one text."""
    split = make.text().validation
    module = made()[0].module
    torch.testing.assert_close(
        evaluation.predict(module, split)[0][:1], evaluation.predict(module, split.first(1))[0], rtol=0, atol=0
    )
