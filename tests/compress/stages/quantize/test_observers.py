"""What the graph is made int8 with: ranges that belong together, corners that must be told, limits that are kept."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch_factories import BITS, Beside, made, off_each, write
from torch_factories import tiny_models as tiny_models

from edgepack.compress.stages.quantize.capture import capture
from edgepack.compress.stages.quantize.contract import Scheme
from edgepack.compress.stages.quantize.convert import converted
from edgepack.compress.stages.quantize.observers import freeze_ranges, prepare, scale_with_exact_three, take_ranges
from edgepack.models.candidate import Candidate

SAMPLES = 4 * torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):  # type: ignore[misc]
    """Two convolutions, something in between, another convolution."""

    side = 6

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Conv2d(8, 8, 1)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8 * self.side**2, 3)

    def between(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return functional.hardswish(torch.cat([a, b], 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.c(self.between(self.a(x), self.b(x))).flatten(1))
        return logits


class Pooled(Net):
    side = 3

    def between(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([functional.hardswish(self.pool(a)), functional.hardswish(self.pool(b))], 1)


class Flat(Net):
    def between(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        both = [functional.hardswish(each.flatten(1)).reshape(each.shape) for each in (a, b)]
        return torch.cat(both, 1)


class Gated(Net):
    def between(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([a, torch.sigmoid(b)], 1)


class GatedFirst(Net):
    def between(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.sigmoid(b), functional.silu(a)], 1)


def calibrated(net: nn.Module) -> tuple[Candidate, torch.Tensor]:
    """In int8, and what it answered before."""
    start = replace(made("eager"), module=net.eval())
    observed = prepare(capture(start, ()), Scheme(bits=BITS), training=False)
    observed(SAMPLES)
    with torch.no_grad():
        return replace(start, module=converted(observed), form="exported"), net(SAMPLES[:16])


def off(answers: torch.Tensor, expected: torch.Tensor) -> float:
    return float((answers - expected).norm() / expected.norm())


def answered(small: Candidate, format: str, rows: torch.Tensor, folder: Path) -> torch.Tensor:
    """By the file, one row after the other."""
    from executorch.runtime import Runtime

    write(small, format, folder / format)
    if format == "onnx":
        session = onnxruntime.InferenceSession(folder / format)
        return torch.cat([torch.from_numpy(session.run(None, {"input": row.numpy()})[0]) for row in rows.split(1)])
    method = Runtime.get().load_program(folder / format).load_method("forward")
    return torch.cat([method.execute([row.contiguous()])[0].clone() for row in rows.split(1)])


def alike_in_both_files(nets: Iterable[nn.Module], folder: Path) -> None:
    """Quantize these nets and check that they answer as before, and their files as they do."""
    small, before = calibrated(Beside(nets))
    with torch.no_grad():
        expected = small.module(SAMPLES[:16])
    for at, share in enumerate(off_each(expected, before)):
        assert share < 0.06, at
    for format in ("executorch", "onnx"):
        for at, share in enumerate(off_each(answered(small, format, SAMPLES[:16], folder), expected)):
            assert share < 0.03, (format, at)


def test_tensors_of_one_range_keep_it_in_both_files(tmp_path: Path) -> None:
    """XNNPACK loads no file in which what is put side by side, pooled or flattened has ranges of its own."""
    torch.manual_seed(1)
    alike_in_both_files((make() for make in (Net, Pooled, Flat, Gated, GatedFirst)), tmp_path)


@pytest.mark.parametrize(("low", "high"), [(-4, 4), (-8.26, 6.07), (-3, 3), (-3.4, 3.8), (-3.1, 0.2), (-9, 20)])
def test_three_is_told_at_hardly_any_cost(low: float, high: float) -> None:
    scale = (high - low) / 255
    zero = round(-128 - low / scale)
    step, origin = scale_with_exact_three(scale, zero, -128, 127)
    assert (3 / step) == pytest.approx(round(3 / step))
    assert origin - round(3 / step) >= -128
    assert scale * (1 - 1e-6) <= step <= 1.05 * scale
    assert (-128 - origin) * step <= (-128 - zero) * scale + step / 2
    assert (127 - origin) * step >= (127 - zero) * scale - step / 2
    again, same = scale_with_exact_three(float(torch.tensor(step)), origin, -128, 127)  # as it is found in float32
    assert again == pytest.approx(step)
    assert same == origin


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-0.5, 0.5), (-2, 4), (-2.7, 2.7), (0, 6), (-60, 60), (0.0, 0.1)])
def test_a_range_that_three_would_widen_is_kept(low: float, high: float) -> None:
    scale = (high - low) / 255
    zero = round(-128 - low / scale)
    assert scale_with_exact_three(scale, zero, -128, 127) == (scale, zero)


def swishing() -> Candidate:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Hardswish(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3))
    return replace(made("eager"), module=net.eval())


def test_training_goes_on_with_the_steps_that_are_kept() -> None:
    graph = capture(swishing(), ())
    observed, prepared = (prepare(graph, Scheme(bits=BITS), training=training) for training in (False, True))
    observed(SAMPLES)
    prepared(SAMPLES[:2])
    take_ranges(prepared, observed)
    assert asked(converted(prepared)) == pytest.approx(asked(converted(observed)))
    prepared(1.3 * SAMPLES)
    freeze_ranges(prepared)
    [fake] = [
        prepared.get_submodule(node.target)
        for node in prepared.graph.nodes
        if node.op == "call_module" and any("hardswish" in str(user.target) for user in node.users)
    ]
    steps = 3 / float(fake.scale)
    assert steps == pytest.approx(round(steps))
    scale = float(fake.scale)
    prepared(2 * SAMPLES)
    assert float(fake.scale) == scale
    assert asked(converted(prepared)) == pytest.approx((scale, int(fake.zero_point)))


def asked(module: nn.Module) -> tuple[float, int]:
    """The scale and the zero point of what the HardSwish of a converted graph reads."""
    [swish] = [node for node in module.graph.nodes if "hardswish" in str(node.target)]
    scale, zero = swish.args[0].args[1:3]
    return scale, zero


def test_a_hard_swish_is_asked_for_numbers_that_both_runtimes_take_exactly(tmp_path: Path) -> None:
    small, _ = calibrated(swishing().module)
    count = [node.op_type for node in onnx.load_from_string(write(small, "onnx", tmp_path / "m")).graph.node]
    assert (count.count("Clip"), count.count("HardSwish")) == (1, 0)


@pytest.mark.parametrize(("limits", "shift", "kept"), [((), -2, 1), ((-1.0, 1.0), -2, 1), ((-1.0, 1.0), 0, 0)])
def test_a_limit_stays_unless_rounding_meets_both_of_its_ends(
    limits: tuple[float, ...], shift: float, kept: int
) -> None:
    """Of a convolution that never gives more than the upper limit; shifted, much less than the lower one."""
    torch.manual_seed(0)
    first = nn.Conv2d(1, 8, 3)
    with torch.no_grad():
        first.weight.mul_(0.1)
        first.bias.fill_(shift)
    net = nn.Sequential(first, Limited(*limits), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 3))
    assert first(SAMPLES).max() < 1
    small, before = calibrated(net)
    assert off(small.module(SAMPLES[:16]), before) < 0.1
    assert sum("hardtanh" in str(node.target) for node in small.module.graph.nodes) == kept


class Limited(nn.Module):  # type: ignore[misc]
    """Hardtanh, with its limits left out where none are given."""

    def __init__(self, *limits: float) -> None:
        super().__init__()
        self.limits = limits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.aten.hardtanh.default(x, *self.limits)
        return result


class Excited(nn.Module):  # type: ignore[misc]
    """Channels weighed by a HardSigmoid, as MobileNetV3 has it."""

    def __init__(
        self, gate: Callable[[torch.Tensor], torch.Tensor] = functional.hardsigmoid, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.first, self.squeeze, self.excite = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1, bias=bias)
        self.gate, self.head = gate, nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        picture = self.first(x)
        share = self.gate(self.excite(functional.relu(self.squeeze(pooled(picture)))))
        logits: torch.Tensor = self.head(pooled(share * picture).flatten(1))
        return logits


class Averaged(nn.Module):  # type: ignore[misc]
    """The means of 4 x 4 pixels, in one of the ways to ask for them, and a layer that reads them."""

    def __init__(self, mean: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.mean, self.head = nn.Conv2d(1, 64, 1), mean, nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.mean(self.first(x[..., :4, :4])))
        return logits


def averaged(mean: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """With the same weights for every mean."""
    torch.manual_seed(3)
    return Averaged(mean)


def pooled(x: torch.Tensor) -> torch.Tensor:
    return functional.adaptive_avg_pool2d(x, 1)


ALIKE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "pooled": lambda x: pooled(x).flatten(1),
    "indexed": lambda x: pooled(x)[..., 0, 0],
    "mean": lambda x: x.mean((2, 3)),
    "reshaped": lambda x: x.mean((2, 3), keepdim=True).reshape(-1, 64),
    "permuted": lambda x: pooled(x).permute(0, 2, 3, 1).reshape(-1, 64),
    "transposed": lambda x: x.mean(3).transpose(1, 2)[:, :1].flatten(1),
    "of a mean": lambda x: x.mean(3).mean(2),
}
BESIDE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "two means": lambda x: torch.cat([pooled(x[:, :32]), pooled(functional.relu(x[:, 32:]))], 1).flatten(1),
    "flat": lambda x: torch.cat([pooled(x[:, :32]).flatten(1), pooled(x[:, 32:]).flatten(1)], 1),
    "mean and maximum": lambda x: torch.cat([x.mean(1), x.amax(1)], 1).flatten(1).repeat(1, 2),
}


def test_means_and_sums_are_rounded_alike_everywhere(tmp_path: Path) -> None:
    """Every 16th mean would lie half way between two steps, and a bias in float between two of its sums."""
    small, before = calibrated(Beside(averaged(mean) for mean in ALIKE.values()))
    with torch.no_grad():
        expected = small.module(SAMPLES)
    for name, share in zip(ALIKE, off_each(expected[:16], before), strict=True):
        assert share < 0.06, name
    for format in ("executorch", "onnx"):
        differ = (answered(small, format, SAMPLES, tmp_path) - expected).abs().amax((0, 2)) > 1e-4
        assert not [name for name, each in zip(ALIKE, differ, strict=True) if each], format


def test_a_mean_beside_others_has_their_steps(tmp_path: Path) -> None:
    """XNNPACK loads no other file."""
    small, _ = calibrated(Beside(averaged(mean) for mean in BESIDE.values()))
    with torch.no_grad():
        expected = small.module(SAMPLES)
    for format in ("executorch", "onnx"):
        for name, share in zip(BESIDE, off_each(answered(small, format, SAMPLES, tmp_path), expected), strict=True):
            assert share < 0.03, (format, name)


GATES: dict[str, Callable[[], Excited]] = {
    "of a layer": Excited,
    "in place": lambda: Excited(lambda x: functional.hardsigmoid(x, inplace=True)),
    "without bias": lambda: Excited(bias=False),
    "read twice": lambda: Excited(lambda x: functional.hardsigmoid(x) * x),
}


def test_a_gate_opens_as_far_in_both_files(tmp_path: Path) -> None:
    torch.manual_seed(1)
    alike_in_both_files((make() for make in GATES.values()), tmp_path)


def test_the_gate_of_a_layer_costs_no_operator(tmp_path: Path) -> None:
    """And both files answer as torch does, to the last step."""
    torch.manual_seed(1)
    small, _ = calibrated(Excited())
    assert not [node for node in small.module.graph.nodes if "hard" in node.name]
    with torch.no_grad():
        expected = small.module(SAMPLES)
    for format in ("executorch", "onnx"):
        assert torch.allclose(answered(small, format, SAMPLES, tmp_path), expected, rtol=0, atol=1e-4), format
    kinds = {node.op_type for node in onnx.load(tmp_path / "onnx").graph.node}
    assert not kinds & {"Add", "Clip", "HardSigmoid"}


def test_a_gate_of_a_layer_that_stays_float_is_kept() -> None:
    torch.manual_seed(1)
    start = replace(made("eager"), module=Excited().eval())
    observed = prepare(capture(start, ("excite",)), Scheme(bits=BITS), training=False)
    observed(SAMPLES)
    assert [node for node in converted(observed).graph.nodes if node.target is torch.ops.aten.hardsigmoid.default]


def test_a_gate_is_trained_as_it_will_be() -> None:
    """Its layer learns with its own weights: what is folded into them would make them move six times as fast."""
    torch.manual_seed(1)
    start = replace(made("eager"), module=Excited().eval())
    trained = prepare(capture(start, ()), Scheme(bits=BITS), training=True)
    trained(SAMPLES)
    assert [node for node in trained.graph.nodes if node.target is torch.ops.aten.hardsigmoid.default]
    with torch.no_grad():
        assert off(converted(trained)(SAMPLES), start.module(SAMPLES)) < 0.06
