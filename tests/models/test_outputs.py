"""A model's outputs as a tuple in the order of its task, whatever structure its forward returns."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from edgepack.core.errors import StageError
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.checks.trial import tried
from edgepack.models.outputs import flattened, picked, rows, tensors

SPECS = (TensorSpec(name="boxes", shape=(2, 4)), TensorSpec(name="scores", shape=(2,)))
SIGNATURE = Signature(inputs=(TensorSpec(name="input", shape=(3,)),), outputs=SPECS)


@dataclass
class Found:
    scores: torch.Tensor
    boxes: torch.Tensor
    loss: torch.Tensor | None = None


class Pair(NamedTuple):
    boxes: torch.Tensor
    scores: torch.Tensor


SHAPES: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "tuple": lambda boxes, scores: (boxes, scores),
    "list": lambda boxes, scores: [boxes, scores],
    "named tuple": Pair,
    "nested": lambda boxes, scores: ((boxes,), {"scores": scores}),
    "dict in another order": lambda boxes, scores: {"scores": scores, "boxes": boxes, "more": boxes},
    "ordered dict": lambda boxes, scores: OrderedDict(boxes=boxes, scores=scores),
    "dict of other names": lambda boxes, scores: {"a": boxes, "b": scores},
    "dataclass in another order": lambda boxes, scores: Found(boxes=boxes, scores=scores),
    "none beside": lambda boxes, scores: (boxes, None, scores),
}


class Net(nn.Module):  # type: ignore[misc]
    """Its weights have names, which must stay."""

    def __init__(self, shape: Callable[..., Any]) -> None:
        super().__init__()
        self.head, self.shape = nn.Linear(3, 10), shape

    def forward(self, x: torch.Tensor) -> Any:
        found = self.head(x)
        return self.shape(found[:, :8].view(-1, 2, 4), found[:, 8:])


@pytest.mark.parametrize("name", SHAPES)
def test_outputs_come_in_the_order_of_the_task(name: str) -> None:
    net, x = Net(SHAPES[name]), torch.rand(2, 3)
    wanted = net.head(x)
    boxes, scores = tensors(tried(net, SIGNATURE, "the model")(x))
    assert torch.equal(boxes, wanted[:, :8].view(2, 2, 4)) and torch.equal(scores, wanted[:, 8:])
    assert {*net.state_dict()} == {"head.weight", "head.bias"}
    assert torch.equal(rows((boxes, scores)), wanted)


def test_one_output_comes_alone() -> None:
    signature = SIGNATURE.model_copy(update={"outputs": SPECS[:1]})
    for shape in (lambda boxes, scores: boxes, lambda boxes, scores: {"boxes": boxes, "hidden": scores}):
        given = tried(Net(shape), signature, "the model")(torch.rand(2, 3))
        assert isinstance(given, torch.Tensor) and given.shape == (2, 2, 4)
    as_it_is = Net(lambda boxes, scores: boxes)
    assert type(tried(as_it_is, signature, "the model")) is Net


def test_a_module_that_gives_a_tuple_is_left_as_it_is() -> None:
    net = Net(SHAPES["tuple"])
    assert flattened(net, SPECS, net(torch.rand(1, 3))) is net and type(net) is Net


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        (
            lambda boxes, scores: boxes,
            r"gives a tensor of shape \[2, 2, 4\] .*, not boxes \[2, 2, 4\] and scores \[2, 2\]",
        ),
        (lambda boxes, scores: (scores, boxes), r"gives a tuple of 2 \(a tensor of shape \[2, 2\] and"),
        (lambda boxes, scores: {"boxes": boxes, "more": scores, "and": scores}, "gives dict"),
        (lambda boxes, scores: (boxes, 3), "gives a tuple of 2"),
        (lambda boxes, scores: {"boxes": boxes, "scores": None}, "gives dict"),
        (lambda boxes, scores: (boxes, scores.numpy()), r"a tensor of shape \[2, 2, 4\] and ndarray\)"),
    ],
)
def test_outputs_that_are_not_those_of_the_task_are_named(shape: Callable[..., Any], given: str) -> None:
    with pytest.raises(StageError, match=given):
        tried(Net(shape), SIGNATURE, "the model")


def test_an_output_of_another_type_is_named() -> None:
    with pytest.raises(StageError, match=r"gives outputs in float64, not in float32.*\n.*scores.float\(\)"):
        tried(Net(lambda boxes, scores: (boxes, scores.double())), SIGNATURE, "the model")


def test_what_does_not_fit_is_no_output() -> None:
    for given in ({"boxes": torch.zeros(1)}, (torch.zeros(1),), torch.zeros(1), (torch.zeros(1), "a", "b")):
        with pytest.raises(KeyError, match="boxes, scores"):
            picked(given, SPECS)


@pytest.mark.parametrize("name", ["dict in another order", "dataclass in another order"])
def test_both_runtimes_give_them_by_name_and_place(name: str, tmp_path: Path) -> None:
    import onnxruntime
    from executorch.runtime import Runtime

    from edgepack.config import plugins
    from edgepack.models.candidate import Candidate, Factory

    torch.manual_seed(0)
    x = torch.rand(1, 3)
    module = tried(Net(SHAPES[name]), SIGNATURE, "the model").eval()
    wanted = [each.detach().numpy() for each in module(x)]
    made = Candidate(module=module, factory=Factory(model="python", config={}, signature=SIGNATURE))
    for format in ("onnx", "executorch"):
        exporter = plugins.load("exporters", format)
        exporter.export(made, exporter.Config(), tmp_path / format)
    session = onnxruntime.InferenceSession(tmp_path / "onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_outputs()] == ["boxes", "scores"]
    by_name = session.run(["scores", "boxes"], {"input": x.numpy()})[::-1]
    by_place = Runtime.get().load_program(tmp_path / "executorch").load_method("forward").execute([x])
    for runtime in (by_name, [each.numpy() for each in by_place]):
        for found, expected in zip(runtime, wanted, strict=True):
            assert abs(found - expected).max() < 1e-5
