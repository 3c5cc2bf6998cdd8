"""A task's methods are tried on a few samples before training: most of them are needed only after it."""

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from edgepack.config.plugins import choose
from edgepack.core.errors import StageError
from edgepack.core.metrics import METRICS
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.contract import Task
from edgepack.data.tasks._meters import Mean
from edgepack.models.checks.task import check_task

SIGNATURE = Signature(inputs=(TensorSpec(name="input", shape=(3, 32, 32)),), labels=("a", "b", "c"))
OBJECTS = torch.tensor([[[1.0, 1, 20, 20, 1], [0, 0, 0, 0, -1]]] * 3)


class Own(Task):
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="values", shape=(2,)),)

    def loss(self, outputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        return (outputs[0] - targets).square().mean()

    def meter(self) -> Mean:
        return Mean({})

    def agreement(self, outputs: Any, reference: Any) -> Any:
        return (numpy.abs(outputs[0] - reference[0]) < 0.1).mean(axis=1)


def _checked(**methods: Any) -> None:
    kind = type("Own", (Own,), {name: lambda self, *_, give=give: give(*_) for name, give in methods.items()})
    check_task(kind(None, SIGNATURE, {"rmse": METRICS["rmse"]}), (torch.rand(3, 2),), (), torch.rand(3, 2))


@pytest.mark.parametrize(
    ("method", "give", "why"),
    [
        ("loss", lambda outputs, targets: (outputs[0] - targets).mean(1), r"gives Tensor of shape \[3\]"),
        ("loss", lambda outputs, targets: outputs[0].detach().sum(), "gives a number without a gradient"),
        ("loss", lambda outputs, targets: None, "gives nothing\n  return a tensor of one number"),
        ("loss", lambda outputs, targets: 1 / 0, r"failed: ZeroDivisionError: .*, at test_task_checks.py:\d+: "),
        ("distill", lambda outputs, teacher, temperature: 1.0, "gives float"),
        ("agreement", lambda one, two: 1.0, "gives float\n  return a numpy array of shape"),
        ("agreement", lambda one, two: one[0] == two[0], r"gives ndarray of shape \[3, 2\]"),
        ("agreement", lambda one, two: numpy.full(3, 100.0), "gives 100 for the first sample\n  return numbers from 0"),
        ("agreement", lambda one, two: numpy.full(3, numpy.nan), "gives nan for the first sample"),
        ("agreement", lambda one, two: abs(one[0] - two[0]).mean(axis=1), "gives 0 for outputs and the very same ones"),
        ("agreement", lambda one, two: one[9], "failed: IndexError: tuple index out of range"),
        ("told", lambda outputs: ["one"], "gives a list of 1"),
        ("told", lambda outputs: [1, 2, 3], "gives a list with 1\n  return a list with one str for each sample"),
        ("truth", lambda targets: None, "gives nothing\n  return a list with one Shown for each sample"),
    ],
)
def test_a_method_that_fails_or_gives_something_else_is_told(method: str, give: Any, why: str) -> None:
    _checked()
    with pytest.raises(StageError, match=rf"{method}\(\) of the task Own {why}"):
        _checked(**{method: give})


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("image_classification", torch.tensor([0, 1, 2])),
        ("multi_label_classification", torch.eye(3)),
        ("regression", torch.rand(3, 3)),
        ("segmentation", torch.full((3, 32, 32), 255)),
        ("embedding", torch.tensor([0, 1, 2])),
        ({"detection": {"strides": (8, 16)}}, OBJECTS),
        ({"detection": {"strides": (8, 16), "most": 3, "postprocess": "in_file"}}, OBJECTS),
    ],
)
def test_shipped_tasks_keep_their_contract_whatever_an_untrained_model_gives(
    name: Any, targets: Tensor, scale: float
) -> None:
    choice = choose("tasks", name)
    task = choice.module.task(choice.config, SIGNATURE)
    torch.manual_seed(0)
    check_task(task, tuple(scale * torch.randn(3, *spec.shape) for spec in task.outputs()), (), targets)
