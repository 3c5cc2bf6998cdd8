from dataclasses import replace
from pathlib import Path

import numpy
import onnxruntime
import pytest
import torch
from caching import cached
from torch import nn
from torch_factories import (
    KINDS,
    Kind,
    accuracy,
    context,
    data,
    learned,
    logits,
    logits_of,
    pictures,
    reloaded,
    write,
)
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages.quantize import Config, Mode, dry_run, run
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.models.candidate import Candidate
from edgepack.models.structure.surgery import Edit, apply


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*module.named_parameters(), *module.named_buffers()])


@cached
def calibrated(kind: Kind, eps: float = 1e-5) -> tuple[Candidate, torch.Tensor]:
    """Quantized without training, and what the float model answered."""
    start = learned(kind, eps=eps)
    before = logits(start.module)
    return run(start, Config(epochs=0), context()), before


@pytest.mark.parametrize("kind", ["residual", "depthwise"])
def test_weights_become_int8_and_the_task_stays(kind: Kind, tmp_path: Path) -> None:
    before = logits(learned(kind).module)
    layers = [m for m in learned(kind).module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    result = run(learned(kind), Config(epochs=1, batch_size=16), context(teacher=learned(kind)))
    assert accuracy(result.module) >= max(0.9, accuracy(calibrated(kind)[0].module))
    assert (result.form, sum(note.endswith("of 1") for note in result.notes)) == ("exported", 1)
    after = logits(result.module)
    assert float((after.argmax(1) == before.argmax(1)).float().mean()) > 0.97
    int8 = [tensor.shape for tensor in tensors(result.module).values() if tensor.dtype == torch.int8]
    assert sorted(int8) == sorted(layer.weight.shape for layer in layers)
    assert torch.equal(logits(reloaded(result, tmp_path / "saved").module), after)


@pytest.mark.parametrize("kind", KINDS)
def test_no_float_copy_of_a_weight_is_left(kind: Kind) -> None:
    result, _ = calibrated(kind)
    assert {tensor.dim() for tensor in tensors(result.module).values() if tensor.dtype == torch.float32} == {1}


@pytest.mark.parametrize(("kind", "eps"), [("residual", 1e-5), ("depthwise", 1e-3)])
def test_batch_norm_is_folded(kind: Kind, eps: float) -> None:
    result, before = calibrated(kind, eps)
    assert not any("batch_norm" in str(node.target) for node in result.module.graph.nodes)
    assert _off(result, before) < 0.1


def test_batch_norm_is_folded_with_its_own_eps() -> None:
    """Where variances are as small as eps, another eps would be another model."""
    start = _with_small_variances(learned(eps=1e-3))
    before = logits(start.module)
    assert _off(run(start, Config(epochs=0), context()), before) < 0.1


def _off(result: Candidate, before: torch.Tensor) -> float:
    return float((logits(result.module) - before).norm() / before.norm())


def _with_small_variances(start: Candidate) -> Candidate:
    """Variances as small as eps, and weights scaled so that the answers stay in range."""
    for layer in start.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean *= 0.03
            layer.running_var *= 1e-3
        if isinstance(layer, nn.Conv2d):
            layer.weight.data *= 0.03
    return start


def test_any_number_of_pictures_may_be_asked_about() -> None:
    result, _ = calibrated("mlp")
    one_by_one = torch.cat([result.module(torch.full((1, 1, 8, 8), light)) for light in (0.1, 0.5, 0.9)])
    together = result.module(torch.tensor([0.1, 0.5, 0.9])[:, None, None, None].expand(3, 1, 8, 8))
    torch.testing.assert_close(one_by_one, together)


def test_the_surgery_log_is_kept() -> None:
    edit = Edit(op="split", layer="1", to={"rank": 4})
    start = learned("mlp")
    apply(start.module, edit)
    assert run(start.changed(edit), Config(epochs=0), context()).surgery == (edit,)


FAMILIES = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "vgg11_bn")
MODELS = {name: {"torchvision": name, "width": "25 %"} for name in FAMILIES} | {"densenet": {"python": "dense:make"}}
DENSE = "from torchvision.models import DenseNet\n\n\ndef make():\n    return DenseNet(8, (2, 3), 16, num_classes=3)\n"


def settled(name: str) -> Candidate:
    """A narrow net with random weights whose batch norms know the pictures."""
    from edgepack.core.process.libraries import torchvision

    torchvision()
    Path("dense.py").write_text(DENSE)
    torch.manual_seed(0)
    start = Candidate.start(plugins.choose("models", MODELS[name]), pictures().signature)
    for layer in start.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        start.module.train()(*pictures().data.train.inputs)
    start.module.eval()
    return start


@pytest.mark.parametrize("name", MODELS)
def test_every_family_becomes_int8_and_is_the_same_when_loaded(name: str, tmp_path: Path) -> None:
    start = settled(name)
    layers = [layer for layer in start.module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    result = run(start, Config(mode="ptq", calibration=16), context(data=pictures().data))
    assert "batch_norm" not in operators(result)
    assert {tensor.dim() for tensor in tensors(result.module).values() if tensor.dtype == torch.float32} == {1}
    assert len(int8(result)) >= len(layers)
    assert torch.equal(logits_of(reloaded(result, tmp_path / "saved")), logits_of(result))


def operators(result: Candidate) -> str:
    return " ".join(str(node.target) for node in result.module.graph.nodes if node.op == "call_function")


def int8(result: Candidate) -> list[torch.Tensor]:
    return [tensor for tensor in tensors(result.module).values() if tensor.dtype == torch.int8]


@pytest.mark.parametrize("mode", ["ptq", "qat", "best"])
def test_every_mode_keeps_the_task(mode: Mode) -> None:
    result = run(learned(), Config(mode=mode, epochs=1, batch_size=16), context(teacher=learned()))
    assert accuracy(result.module) >= accuracy(learned().module) - 0.05


def test_training_starts_where_calibration_ends() -> None:
    trained, calibrated = (run(learned(), Config(mode=mode, epochs=0), context()) for mode in ("qat", "ptq"))
    assert _off(trained, logits(calibrated.module)) < 0.01


@pytest.mark.parametrize("rate", [1e-4, 0.9])
def test_what_best_decided_gives_the_same_without_deciding(rate: float) -> None:
    settings = Config(mode="best", epochs=1, batch_size=16, learning_rate=rate)
    best = run(learned(), settings, context(teacher=learned()))
    assert set(best.decided) == {"mode"}
    again = run(learned(), settings.model_copy(update=best.decided), context(teacher=learned()))
    assert torch.equal(logits(again.module), logits(best.module))
    assert again.decided == {}
    (told,) = [note for note in best.notes if "validation" in note]
    assert told.startswith(f"kept {best.decided['mode']} (ptq: accuracy ") and "; qat: accuracy " in told


def test_best_keeps_ptq_where_training_gains_nothing() -> None:
    assert run(learned(), Config(mode="best", epochs=0), context()).decided == {"mode": "ptq"}


@pytest.mark.parametrize("format", ["executorch", "onnx"])
def test_layers_left_in_fp32_are_float_and_the_rest_int8(format: str, tmp_path: Path) -> None:
    start = learned()
    names = [name for name, layer in start.module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    floats = {"stem.0", "blocks.1.conv1", "blocks.1.conv2"}
    result = run(start, Config(mode="ptq", fp32=("stem.0", "blocks.1")), context())
    left = {name for name, tensor in tensors(result.module).items() if tensor.is_floating_point() and tensor.dim() > 1}
    assert left == {f"{name}.weight" for name in floats}
    assert len(int8(result)) == len(names) - len(floats)
    write(result, format, tmp_path / "model")
    answers = torch.from_numpy(answered(format, tmp_path / "model"))
    expected = logits(result.module)[:8]
    assert float((answers - expected).norm() / expected.norm()) < 0.05


def answered(format: str, path: Path) -> "numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]]":
    """What the file says about the first test pictures."""
    pictures = data().test.inputs[0][:8].split(1)
    if format == "onnx":
        session = onnxruntime.InferenceSession(str(path))
        return numpy.concatenate([session.run(None, {"input": picture.numpy()})[0] for picture in pictures])
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    return numpy.concatenate([method.execute([picture.contiguous()])[0].clone().numpy() for picture in pictures])


def test_layers_of_a_bare_sequence_go_by_their_own_names() -> None:
    result = run(learned("mlp"), Config(mode="ptq", fp32=("3",)), context())
    assert [tuple(tensor.shape) for tensor in int8(result)] == [(16, 64)]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("blocks.0.conv3", r"no layer matches 'blocks.0.conv3'\n.*blocks.0.conv"), ("[sbh]*", "fp32 names every layer")],
)
def test_a_pattern_that_makes_no_sense_is_found_before_training(pattern: str, message: str) -> None:
    with pytest.raises(StageError, match=message):
        dry_run(learned(), Config(fp32=(pattern,)), Quantization())


def test_a_dry_run_gives_the_structure_and_leaves_the_model_alone() -> None:
    start = learned("depthwise")
    before = logits(start.module)
    planned = dry_run(start, Config(), Quantization())
    made = run(learned("depthwise"), Config(mode="ptq"), context())
    assert planned.form == "exported"
    assert {n: t.shape for n, t in tensors(planned.module).items()} == {
        n: t.shape for n, t in tensors(made.module).items()
    }
    assert torch.equal(logits(start.module), before)


class Undecided(nn.Module):  # type: ignore[misc]
    """What it does depends on the values it sees."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3] if x.sum() > 0 else x.flatten(1)[:, 3:6]


def test_a_model_that_cannot_be_exported_is_found_before_training() -> None:
    with pytest.raises(StageError, match=r"torch\.export cannot take this model"):
        dry_run(replace(learned(), module=Undecided()), Config(), Quantization())


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_where_the_device_saturates_weights_have_7_bits(mode: Mode) -> None:
    saturates = context(quantization=Quantization(int8_saturates=True))
    result = run(learned(), Config(mode=mode, epochs=1, batch_size=16), saturates)
    assert max(int(weight.abs().max()) for weight in int8(result)) == 63
    limits = [node.args[4:6] for node in result.module.graph.nodes if "dequantize_per_channel" in str(node.target)]
    assert limits == [(-63, 63)] * len(int8(result))
    assert any("7 bits" in note for note in result.notes)
    assert accuracy(result.module) >= 0.9


class Dense(nn.Module):  # type: ignore[misc]
    """Batch norm before convolutions, of tensors that are put side by side, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.stem(x)
        both = torch.cat([first, 4 * self.conv(torch.relu(self.norm1(first)))], 1)
        logits: torch.Tensor = self.head(torch.relu(self.norm2(both)).mean((2, 3)))
        return logits


class Rows(nn.Module):  # type: ignore[misc]
    """A batch norm of rows that follows no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 3), nn.BatchNorm1d(3))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(x)
        return logits


@pytest.mark.parametrize("make", [Dense, Rows])
@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_batch_norm_that_follows_no_layer_keeps_its_statistics(make: type[nn.Module], mode: Mode) -> None:
    torch.manual_seed(0)
    module = make()
    with torch.no_grad():
        for batch in data().train.batches(24):
            module.train()(*batch.inputs)
    start = replace(learned(), module=module.eval())
    before = logits(start.module)
    result = run(start, Config(mode=mode, epochs=1, learning_rate=1e-6), context())
    assert _off(result, before) < 0.1
    assert "norm" not in operators(result)
    one_by_one = torch.cat([result.module(picture) for picture in data().test.inputs[0].split(1)])
    torch.testing.assert_close(one_by_one, logits(result.module))


def test_relu6_ends_at_six_and_costs_no_operator_of_its_own() -> None:
    start = learned("depthwise")
    with torch.no_grad():
        start.module[0].weight.mul_(50)  # most of what the first ReLU6 sees is above six
    before = logits(start.module)
    result = run(start, Config(mode="ptq"), context())
    assert _off(result, before) < 0.1
    assert "hardtanh" not in operators(result)


def test_relu6_between_layers_in_fp32_is_still_one() -> None:
    start = learned("depthwise")
    with torch.no_grad():
        start.module[0].weight.mul_(50)
    before = logits(start.module)
    result = run(start, Config(mode="ptq", fp32=("0", "3")), context())
    assert _off(result, before) < 0.1
    assert operators(result).count("hardtanh") == 1


def test_calibration_sees_as_many_samples_as_asked() -> None:
    few = run(learned(), Config(mode="ptq", calibration=1), context())
    many = run(learned(), Config(mode="ptq", calibration=96), context())
    before = logits(learned().module)
    assert _off(many, before) < _off(few, before)
