from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch_factories import KINDS, Kind, accuracy, context, learned, logits, reloaded
from torch_factories import tiny_models as tiny_models

from edgepack.candidate import Candidate
from edgepack.stages.quantize import Config, run
from edgepack.surgery import Edit, apply


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*module.named_parameters(), *module.named_buffers()])


@cache
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
    assert (result.form, [note.endswith("of 1") for note in result.notes]) == ("exported", [True])
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
