"""What cannot be loaded or run is told before anything is trained, with the operator at fault and a way out."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch_factories import candidate
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages import quantize
from edgepack.config import plugins
from edgepack.config.device import Controls
from edgepack.core.errors import RefusedError, StageError
from edgepack.export.formats.executorch.backends.xnnpack import rewrites
from edgepack.measure import dry_run, evaluate, processes
from edgepack.measure.timing.protocol import Run
from edgepack.measure.worker import job
from edgepack.models.candidate import Candidate


class Twice(nn.Module):  # type: ignore[misc]
    """One convolution for two passes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.again(functional.relu(self.again(functional.relu(self.stem(x)))))
        logits: torch.Tensor = self.head(inside.mean((2, 3)))
        return logits


class Greatest(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.stem(x)
        most = inside.max(1)[0]
        return most.flatten(1)


def start(net: nn.Module) -> Candidate:
    torch.manual_seed(1)
    return replace(candidate(), module=net.eval())


def int8(candidate: Candidate) -> Candidate:
    from edgepack.config.device import Quantization

    return quantize.dry_run(candidate, quantize.Config(mode="ptq"), Quantization(int8_saturates=True))


def in_this_process(asked: dict[str, Any]) -> dict[str, Any]:
    """Run a file where that is not what fails: a fresh process for each piece takes seconds."""
    return job.run({**asked, "threads": 1})


def checked(candidate: Candidate, format: str, run: Run | None = None) -> list[int]:
    progress: list[int] = []
    with closing(processes.Host(Controls(threads=1))) as here:
        dry_run.check(
            candidate, plugins.choose("exporters", format), run or here.run, lambda done, total: progress.append(done)
        )
    return progress


@pytest.mark.parametrize("format", ["executorch", "onnx"])
def test_a_file_that_runs_is_let_pass(format: str) -> None:
    assert checked(int8(start(Twice())), format) == []


def test_a_file_that_its_runtime_refuses_is_told_with_the_layer_and_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ExecuTorch writes it of itself: with one bias, in the steps of the first of two passes."""
    monkeypatch.setattr(rewrites, "_give_own", lambda module: False)
    with pytest.raises(
        StageError, match=r"aten\.conv2d\.default' at 'again', .*test_dry_run.py:\d+: inside ="
    ) as caught:
        checked(int8(start(Twice())), "executorch")
    assert "it does not load" in caught.value.message and "the executorch file" in caught.value.message
    assert "quantize: {fp32: ['again']}" in caught.value.hint


def test_a_file_that_answers_otherwise_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = evaluate.outputs

    def halved(*arguments: Any, **named: Any) -> Any:
        return tuple(each / 2 for each in outputs(*arguments, **named))

    monkeypatch.setattr(evaluate, "outputs", halved)
    with pytest.raises(
        StageError, match="the onnx file gives other outputs than the torch model: on random inputs they differ by 50 %"
    ):
        checked(start(Twice()), "onnx")


def test_a_failure_that_names_no_operator_is_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = plugins.choose("exporters", "onnx").module
    export = exporter.export

    def failing(candidate: Candidate, config: Any, path: Path) -> None:
        if sum("conv2d" in str(node.target) for node in candidate.program(batch=1).graph.nodes) > 2:
            raise RuntimeError("a pass failed")
        export(candidate, config, path)

    monkeypatch.setattr(exporter, "export", failing)
    with pytest.raises(
        StageError,
        match=r"RuntimeError: a pass failed\), see build.log .*; the first operator .*conv2d.default' at 'again'",
    ):
        checked(start(Twice()), "onnx")


def test_an_operator_of_several_results_is_told_by_its_own_name_and_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its results are taken from it by another node of the graph."""
    monkeypatch.setattr(rewrites, "_replace_unsupported", lambda module: False)
    with pytest.raises(
        StageError, match=r"only supports keep_dim .* 'aten\.max\.dim' at test_dry_run.py:\d+: most = inside\.max"
    ) as caught:
        checked(start(Greatest()), "executorch", in_this_process)
    assert "getitem" not in caught.value.message


def test_a_pass_that_fails_is_told_with_the_operator_and_not_the_first_of_its_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As ExecuTorch does for the norm of a transposed convolution of several groups; the stem is a convolution too."""
    monkeypatch.setattr(rewrites, "_without_norms", lambda module: False)
    grown = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, stride=2, groups=4), nn.BatchNorm2d(8))
    net = nn.Sequential(nn.Conv2d(1, 8, 3), grown, nn.Flatten())
    with pytest.raises(
        StageError,
        match=r"the 'FuseBatchNormPass' pass .* the first operator that fails is .*batch_norm.default' at '1.1'",
    ):
        checked(start(net), "executorch", in_this_process)


def test_where_pieces_tell_nothing_the_reason_still_is() -> None:
    asked: list[dict[str, Any]] = []

    def first_refused(job: dict[str, Any]) -> dict[str, Any]:
        asked.append(job)
        if len(asked) == 1:
            raise RefusedError("it died of SIGSEGV")
        with Path(job["output"]).open("wb") as file:
            numpy.savez(file, numpy.zeros((job["rows"], 3), "float32"))
        return {"rows": job["rows"]}

    with pytest.raises(StageError, match=r"^it died of SIGSEGV\n"):
        checked(start(Twice()), "onnx", first_refused)
