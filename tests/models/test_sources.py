"""A model that cannot be used is told with the module and the line of its own code where it stands."""

import logging
from pathlib import Path
from textwrap import dedent, indent

import pytest
import torch
from factories import edgepack, recipe_file
from torch import nn
from torch_factories import SIGNATURE, context, learned
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages import quantize
from edgepack.config import plugins
from edgepack.core.errors import StageError
from edgepack.export.contract import write
from edgepack.models import source_lines
from edgepack.models.candidate import Candidate
from edgepack.models.checks import finite

NETS = """\
import torch
from torch import nn

class Inner(nn.Module):
    def forward(self, x):
{inner}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        self.blocks = nn.ModuleList([Inner()])
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.features(x).mean((2, 3))
        {forward}
"""
FORWARD = "return self.head(self.blocks[0](x))"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own module of this name in its own folder."""
    monkeypatch.syspath_prepend(str(Path.cwd()))


def nets(inner: str = "return x", forward: str = FORWARD) -> None:
    Path("nets.py").write_text(NETS.format(inner=indent(dedent(inner), " " * 8), forward=forward))


def start() -> Candidate:
    return Candidate.start(plugins.choose("models", {"python": "nets:Net"}), SIGNATURE)


def why(format: str = "") -> str:
    """What is said of the model, when it is built or when it is exported."""
    with pytest.raises(StageError) as failure:
        made = start()
        write(made, plugins.choose("exporters", format), Path("model"))
    assert failure.value.hint
    assert "\n" not in failure.value.message
    return failure.value.message


@pytest.mark.parametrize(
    ("inner", "place"),
    [
        ("x = x * 2\nif x.sum() > 0:\n    x = x + 1\nreturn x", "nets.py:7: if x.sum() > 0:"),
        ("rows = x.flatten().nonzero()\nreturn x + rows.sum()", "nets.py:6: rows = x.flatten().nonzero()"),
        ("return x + x[x > 0].mean()", "nets.py:6: return x + x[x > 0].mean()"),
        ("n = int(x.sum())\nreturn x[:, :n].sum() + x", "nets.py:6: n = int(x.sum())"),
        ("return torch.from_numpy(x.numpy()) * 2", "nets.py:6: return torch.from_numpy(x.numpy()) * 2"),
    ],
    ids=["branch", "nonzero", "mask", "item", "numpy"],
)
def test_what_depends_on_the_data_is_told_by_module_and_line(inner: str, place: str) -> None:
    nets(inner)
    message = why("onnx")
    assert message.startswith(("torch.export cannot take this model", "the shape of what"))
    assert f"at 'blocks.0', {place}" in message


@pytest.mark.parametrize(
    ("inner", "operator", "formats"),
    [
        ("return torch.special.bessel_j0(x)", "aten.special_bessel_j0.default", ("executorch", "onnx")),
        ("return torch.abs(x) + torch.fft.fft(x).abs()", "aten.abs.default", ("executorch",)),
        ("return x + torch.linalg.det(x.mT @ x)", "aten.linalg_det.default", ("executorch",)),
    ],
    ids=["missing", "complex", "taken apart"],
)
def test_an_operator_that_an_exporter_lacks_is_told_by_name_module_and_line(
    inner: str, operator: str, formats: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    nets(inner)
    for format in formats:
        caplog.clear()
        place = f"at 'blocks.0', nets.py:6: {inner}"
        assert why(format) == f"{format} has nothing for the operator '{operator}', {place}"
        assert any(record.levelno == logging.ERROR and record.exc_info for record in caplog.records)


def test_an_error_of_an_exporter_that_names_no_operator_is_told_as_it_is() -> None:
    nets()
    made = start()
    with (
        pytest.raises(StageError, match=r"onnx cannot take this model \(ValueError: no torch.ops here\)") as failure,
        source_lines.lowering("onnx", lambda: made.program(batch=1)),
    ):
        raise ValueError("no torch.ops here\nsecond line")
    assert failure.value.hint == "see build.log for the traceback"


@pytest.mark.parametrize(
    ("inner", "forward", "reason"),
    [
        (
            "return x.reshape(2, 4)",
            FORWARD,
            "cannot take this data, a tensor of shape [1, 1, 8, 8]: RuntimeError: shape",
        ),
        (
            "return x.reshape(1, 4)",
            FORWARD,
            "cannot take this data, a tensor of shape [2, 1, 8, 8]: RuntimeError: shape",
        ),
    ],
    ids=["two", "one"],
)
def test_a_number_of_samples_written_into_a_model_is_told(inner: str, forward: str, reason: str) -> None:
    nets(inner, forward)
    assert reason in (message := why())
    assert message.endswith(f"at 'blocks.0', nets.py:6: {inner}")


def test_a_sum_with_a_constant_of_so_many_samples_is_told() -> None:
    nets("return x + torch.ones(2, 4)")
    message = why()
    assert "gives a tensor of shape [2, 3] for a tensor of shape [1, 1, 8, 8], not logits [1, 3]" in message


@pytest.mark.parametrize(
    ("inner", "forward", "reason"),
    [
        (
            "return x",
            "return self.head(x), x",
            "gives a tuple of 2 (a tensor of shape [2, 3] and a tensor of shape [2, 4]) for a tensor of shape "
            "[2, 1, 8, 8], not logits [2, 3], at nets.py:17: return self.head(x), x",
        ),
        (
            "return x",
            "self.head(x)",
            "gives nothing for a tensor of shape [2, 1, 8, 8], not logits [2, 3], at",
        ),
        ("return x, x", "return self.blocks[0](x)", "at 'blocks.0', nets.py:6: return x, x"),
        ("return x", "return self.blocks[0](x)", "at 'blocks.0', nets.py:6: return x"),
    ],
    ids=["two", "none", "two further inside", "no class"],
)
def test_a_model_with_other_than_one_output_is_told(inner: str, forward: str, reason: str) -> None:
    nets(inner, forward)
    assert reason in why()


def test_a_layer_that_gets_another_width_is_told() -> None:
    nets("return x.repeat(1, 2)")
    assert why().endswith(f"at 'head', nets.py:17: {FORWARD}")


def test_weights_that_are_not_finite_are_told_with_their_layers() -> None:
    nets()
    module = start().module
    finite.check_finite(module)
    with torch.no_grad():
        module.head.weight[0, :2] = float("nan")
        module.features[0].bias[1] = float("inf")
    with pytest.raises(StageError) as failure:
        finite.check_finite(module)
    assert failure.value.message.endswith("'features.0.bias' of a Conv2d (1 of 4), 'head.weight' of a Linear (2 of 12)")


def test_a_mask_may_hold_infinity_and_the_statistics_of_a_norm_may_not() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.register_buffer("mask", torch.full((2, 2), float("-inf")))
    finite.check_finite(module)
    module[1].running_var[0] = float("inf")
    with pytest.raises(StageError, match=r"'1.running_var' of a BatchNorm1d \(1 of 2\)"):
        finite.check_finite(module)


def test_the_weights_of_a_quantized_model_are_told_by_their_layer() -> None:
    made = quantize.run(learned("mlp"), quantize.Config(epochs=0), context()).module
    finite.check_finite(made)
    name, tensor = next((name, each) for name, each in made.named_buffers() if each.is_floating_point() and each.dim())
    tensor[0] = float("nan")
    with pytest.raises(StageError, match=rf"'{name}' in '[13]' \(1 of"):
        finite.check_finite(made)


def test_the_layers_of_a_bare_sequence_have_their_own_names() -> None:
    program = learned("mlp").program(batch=1)
    assert [source_lines.part_of(node) for node in program.graph.nodes if node.op == "call_function"] == [
        "0",
        "1",
        "2",
        "3",
    ]


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (
            "return torch.special.bessel_j0(x)",
            "export onnx, dry run before any training: onnx has nothing for the operator "
            "'aten.special_bessel_j0.default', at 'blocks.0', nets.py:6: return torch.special.bessel_j0(x)",
        ),
        (
            "return x * float('nan') if hasattr(self, 'x') else self.register_parameter("
            "'x', nn.Parameter(torch.tensor(torch.inf))) or x",
            "not every weight is a finite number",
        ),
    ],
    ids=["operator", "weight"],
)
def test_a_build_tells_before_it_trains(inner: str, message: str) -> None:
    """Short, with exit code 5 and no traceback."""
    nets(inner)
    recipe_file(
        model={"python": "nets:Net"}, data={"digits": {"size": 8}}, stages=[{"train": {"epochs": 1}}], export=["onnx"]
    )
    Path("nets.py").write_text(Path("nets.py").read_text().replace("nn.Linear(4, 3)", "nn.Linear(4, 10)"))
    ran = edgepack("build", "tiny")
    assert ran.code == 5
    assert message in ran.err
    assert "Traceback" not in ran.err + ran.out
    assert not [line for line in ran.out.splitlines() if "epoch" in line]


NEGATIVE = """\
import torch
from torch import nn

def plain():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

def broken():
    net = plain()
    net[1].running_var[1:] = -1
    return net
"""
AT_FAULT = "first at '1', a BatchNorm2d whose running_var is below 0 (3 of 4)"


@pytest.mark.parametrize("stages", [[], [{"quantize": {"mode": "ptq"}}], [{"train": {"epochs": 1}}]])
def test_a_checkpoint_whose_answers_are_no_numbers_is_told_with_its_first_layer(stages: list[object]) -> None:
    Path("nets.py").write_text(NEGATIVE)
    state = torch.nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    ).state_dict()
    state["1.running_var"][1:] = -1
    torch.save(state, "net.pth")
    model = {"python": "nets:plain", "checkpoint": "net.pth"}
    recipe_file(model=model, data={"digits": {"size": 8}}, stages=stages, export=["onnx"], budgets={"size": "10 MB"})
    ran = edgepack("build", "tiny")
    assert ran.code == 5
    text = "".join(ran.err.split("\n"))
    assert "model: the outputs are NaN or Inf for" in text
    assert AT_FAULT in text


def test_what_has_no_range_for_int8_is_told_before_training() -> None:
    Path("nets.py").write_text(NEGATIVE)
    recipe_file(
        model={"python": "nets:broken"},
        data={"digits": {"size": 8}},
        stages=[{"train": {"epochs": 1}}, {"quantize": {"mode": "ptq"}}],
        export=["onnx"],
        budgets={"size": "10 MB"},
    )
    ran = edgepack("build", "tiny")
    assert ran.code == 5
    text = "".join(ran.err.split("\n"))
    assert "quantize, dry run before any training: the range of an activation is NaN or Inf" in text
    assert AT_FAULT in text


def test_the_first_part_that_is_not_finite_is_found_in_both_forms() -> None:
    class Shifted(nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(x - 2)

    module = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Sigmoid(), Shifted()), nn.ReLU()).eval()
    inputs = (torch.ones(2, 4),)
    assert finite.first_not_finite(module, inputs) == ", first at '1.1', a Shifted"
    program = torch.export.export(nn.ModuleDict({"m": module})["m"], inputs).module()
    assert isinstance(program, torch.fx.GraphModule)
    assert finite.first_not_finite(program, inputs).startswith(", first at '1.1', ")
    assert finite.first_not_finite(module[0], inputs) == ""
