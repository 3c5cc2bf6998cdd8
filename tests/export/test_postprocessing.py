"""What a task computes after a model becomes a part of its files, and of nothing else."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor
from torch_factories import SIGNATURE, How, candidate, data, made, task, write
from torch_factories import tiny_models as tiny_models

from edgepack.compress.training import evaluation
from edgepack.core.errors import StageError
from edgepack.core.signature import TensorSpec
from edgepack.data.tasks._classification import Classification
from edgepack.export.postprocessing import shipped
from edgepack.export.tensor_layers import named
from edgepack.models.outputs import scorable, tensors

_SCALE = torch.tensor([1.0, 2.0, 3.0])


class Probable(Classification):
    def file_outputs(self) -> tuple[TensorSpec, ...]:
        return TensorSpec(name="scaled", shape=(3,)), TensorSpec(name="surest", shape=(2,))

    def postprocess(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        likely = outputs[0].softmax(1)
        return likely * _SCALE, likely.topk(2).values


PROBABLE = Probable(None, SIGNATURE, task().metrics)


@pytest.mark.parametrize("how", ["eager", "quantized"])
def test_a_file_has_it(how: How, tmp_path: Path) -> None:
    model, split = made(how), data().test
    before = evaluation.predict(model.module, split)
    whole = shipped(model, PROBABLE)
    wanted = scorable(PROBABLE, before, ())
    with torch.no_grad():
        found = tensors(whole.module(*split.head(len(split))))
    write(whole, "onnx", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [each.name for each in session.get_outputs()] == ["scaled", "surest"]
    rows = [session.run(None, {"input": split.head(8)[0][row : row + 1].numpy()}) for row in range(8)]
    for place, each in enumerate(wanted):
        assert torch.allclose(found[place], each, atol=1e-6)
        assert torch.allclose(torch.cat([torch.from_numpy(row[place]) for row in rows]), each[:8], atol=0.02)
    assert whole.form == model.form and named(whole).layers >= named(model).layers
    assert torch.equal(evaluation.predict(model.module, split)[0], before[0])  # as it was


def test_what_postprocesses_nothing_is_shipped_as_it_is() -> None:
    model, plain = candidate(), task()
    assert shipped(model, plain) is model
    outputs = (torch.zeros(2, 3),)
    assert scorable(plain, outputs, ()) is outputs and plain.file_signature == plain.signature


def test_samples_are_postprocessed_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, sizes = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), []
    plain = Probable.postprocess

    def postprocess(self: Probable, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        sizes.append(len(outputs[0]))
        return plain(self, outputs)

    monkeypatch.setattr(Probable, "postprocess", postprocess)
    found = scorable(PROBABLE, (logits,), ())
    assert sum(sizes) == 40 and max(sizes) < 40
    assert torch.allclose(found[0], logits.softmax(1) * _SCALE)


def test_outputs_that_the_task_does_not_name_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probable, "postprocess", lambda self, outputs: outputs)
    with pytest.raises(StageError, match=r"gives tensors of shapes \[2, 3\], not \[2, 3\], \[2, 2\]"):
        shipped(candidate(), PROBABLE)
