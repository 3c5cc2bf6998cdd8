"""`fp32: auto`: which blocks stay in fp32, found by timing. The clock is in the test's hands: a table of costs."""

from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import answers, recipe_file
from factories import timed as timing_outcome
from tiny_project import without_dry_run as without_dry_run
from torch import nn
from torch_factories import Kind, context, learned, logits
from torch_factories import candidate as fresh
from torch_factories import tiny_models as tiny_models

from edgepack.compress.contract import Latency
from edgepack.compress.stages.quantize import Config, Mode, dry_run, incompatibility, run
from edgepack.compress.stages.quantize.mixed_precision import Precision, Trials, blocks, decide, grouped
from edgepack.config.device import Quantization, load_device
from edgepack.config.recipe import Place
from edgepack.config.recipe_reading import load_recipe
from edgepack.core.errors import StageError
from edgepack.core.events import Event, StepProgress
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import stored_bytes
from edgepack.workflows.build import pipeline, runner
from edgepack.workflows.build.steps import trials
from edgepack.workflows.build.store import Store

NAMES = ("stem", "blocks.0", "blocks.1", "blocks.2", "head")


def network(fp32: tuple[str, ...], names: tuple[str, ...] = NAMES) -> Candidate:
    """What stands for a network: per block 1000 bytes, or 4000 in fp32."""
    left = tuple(names) if fp32 == ("*",) else fp32
    size = 1000 * len(names) + 3000 * len(left)
    return replace(fresh("mlp"), module=nn.ParameterList([torch.empty(size // 4)]), notes=left)


def clock(gains: dict[str, float], crossing: float = 0.0) -> Latency:
    """100 ms, less what each block gains in fp32; the way from int8 to fp32 and back costs `crossing`."""

    def timed(made: Candidate) -> float:
        steps = [False, *(name in made.notes for name in NAMES), False]
        ways = sum(before != after for before, after in pairwise(steps)) / 2
        return 100 - sum(gains.get(name, 0) for name in made.notes) + crossing * ways

    return timed


def decided(
    latency: Latency, *, given: tuple[str, ...] = (), names: tuple[str, ...] = NAMES, **about: Any
) -> Precision:
    free = [name for name in names if name not in given]
    make = cache(partial(network, names=names))
    return decide(Trials(given=given, groups=grouped(free), make=make, context=context(latency=latency, **about)))


def test_what_is_faster_in_fp32_stays_so() -> None:
    found = decided(clock({"stem": 20, "head": 5, "blocks.1": -9}))
    assert found.fp32 == ("stem", "head")
    assert found.notes == (
        "int8 everywhere 100 ms, fp32 everywhere 84 ms, mixed 75 ms",
        "faster in fp32 here: stem (100 ms -> 80 ms alone)",
        "faster in fp32 here: head (100 ms -> 95 ms alone)",
    )


def test_blocks_that_pay_only_together_are_found() -> None:
    """Each alone gains less than the way there and back costs."""
    assert decided(clock({"blocks.1": 6, "blocks.2": 6}, crossing=7)).fp32 == ("blocks.1", "blocks.2")


def test_a_block_beside_what_wins_saves_a_way() -> None:
    found = decided(clock({"blocks.0": 20, "blocks.1": -2, "blocks.2": 20, "head": -20}, crossing=9))
    assert found.fp32 == ("blocks.0", "blocks.1", "blocks.2")
    assert "blocks.1 (with another)" in found.notes[2]


def test_many_small_gains_are_one_large() -> None:
    assert decided(clock({"stem": 1.5, "blocks.0": 1.5, "blocks.1": 1.5, "head": -9})).fp32 == NAMES[:3]


def test_gains_within_noise_are_none() -> None:
    found = decided(clock({"stem": 1}))
    assert found.fp32 == ()
    assert found.notes == ("int8 everywhere is fastest here: int8 everywhere 100 ms, fp32 everywhere 99 ms",)


def test_what_is_not_faster_again_is_not_believed() -> None:
    """int8 is slow while it is looked for, and no longer when it is timed in turns with what seemed to win."""
    timings = iter([100.0, 100.0])
    found = decided(lambda made: 90.0 if made.notes else next(timings, 89.0))
    assert found.fp32 == ()
    assert "were not faster when timed again" in found.notes[0]


def test_where_fp32_wins_everywhere_nothing_is_int8() -> None:
    assert decided(clock(dict.fromkeys(NAMES, 10), crossing=5)).fp32 == ("*",)


@pytest.mark.parametrize(("beside", "left"), [(0, ("blocks.2", "head")), (500, ("head",))])
def test_the_size_budget_holds(beside: int, left: tuple[str, ...]) -> None:
    """fp32 would be faster everywhere; files are a little larger than the weights in them."""
    gains = {name: 5.0 + place for place, name in enumerate(NAMES)}
    found = decided(clock(gains), size=lambda made: stored_bytes(made.module) + beside, size_budget=11_000)
    assert found.fp32 == left
    assert found.notes[-1] == "fp32 everywhere would be faster still, but its file is above the size budget of 11 kB"


def test_layers_may_be_named_as_well() -> None:
    assert decided(clock({"stem": 20, "head": -5}), given=("head",)).fp32 == ("head", "stem")


@pytest.mark.parametrize("gain", [-3, 1, 3])
def test_trials_are_bounded_and_told(gain: float) -> None:
    """However deep and promising a net is, it is tried in eight pieces and a few sets of them."""
    events: list[Event] = []
    names = tuple(f"features.{i}" for i in range(50))
    decided(lambda made: 200 - gain * len(made.notes), names=names, events=events)
    progress = [event for event in events if isinstance(event, StepProgress)]
    assert [(event.done, event.total) for event in progress] == [(i, 21) for i in range(len(progress))]
    assert 11 <= len(progress) <= 21


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        (["features.0.0", "features.1.block.0.0", "features.1.block.1.fc1", "classifier.3"], 3),
        (["encoder.embeddings.word", "encoder.encoder.layer.0.query", "encoder.encoder.layer.1.query", "head"], 4),
        (["net.conv", "net.3.conv"], 2),
        (["1", "3"], 2),
    ],
)
def test_every_layer_lies_in_one_block(layers: list[str], found: int) -> None:
    parts = blocks(layers)
    assert len(parts) == found
    for layer in layers:
        assert sum(layer == block or layer.startswith(f"{block}.") for block in parts) == 1


def floats(made: Candidate) -> set[str]:
    """The layers whose weights are no integers."""
    tensors = [*made.module.named_parameters(), *made.module.named_buffers()]
    named = [(name.removeprefix("model.").removesuffix(".weight"), each) for name, each in tensors]
    return {name for name, each in named if each.is_floating_point() and each.dim() > 1}


@pytest.mark.parametrize("mode", ["ptq", "qat"])
def test_what_was_decided_gives_the_same_without_a_clock(mode: Mode) -> None:
    settings = Config(mode=mode, epochs=1, batch_size=8, fp32=("auto",))
    about = context(latency=lambda made: 8 if floats(made) == {"1"} else 10)
    timed = run(learned("mlp"), settings, about)
    assert (floats(timed), timed.decided) == ({"1"}, {"fp32": ["1"]})
    assert "kept in fp32: 1" in timed.notes
    again = run(learned("mlp"), settings.model_copy(update={"fp32": ("1",)}), context())
    assert torch.equal(logits(timed.module), logits(again.module))


@pytest.mark.parametrize("kind", ["residual", "depthwise"])
def test_a_model_of_which_nothing_is_int8_is_the_float_model(kind: Kind) -> None:
    made = run(learned(kind), Config(fp32=("*",)), context())
    assert made.form == "exported"
    assert not any("quantize" in str(node.target) for node in made.module.graph.nodes)
    torch.testing.assert_close(logits(made.module), logits(learned(kind).module), rtol=1e-4, atol=1e-4)


def test_a_dry_run_times_nothing_and_a_device_must_measure() -> None:
    config = Config.model_validate({"fp32": "auto"})
    assert dry_run(learned("mlp"), config, Quantization(), latency=None).form == "exported"
    with pytest.raises(StageError, match="no device here can measure latency"):
        run(learned("mlp"), config, context())
    for evidence, wrong in (("measured", False), ("emulated", True), ("estimated", True)):
        assert bool(incompatibility(config, Place(quantization=Quantization(), evidence=evidence))) == wrong
        assert not incompatibility(Config(), Place(quantization=Quantization(), evidence=evidence))


NET = """\
from torch import nn
def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
"""


@pytest.mark.usefixtures("without_dry_run")
def test_the_bundle_says_what_was_decided_and_is_built_again_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("precise_nets.py").write_text(NET)
    timed: list[set[str]] = []

    def clock(_: trials.Trials, made: Candidate) -> float:
        timed.append(floats(made))
        return 8.0 if "1" in timed[-1] else 10.0

    monkeypatch.setattr(trials.Trials, "latency", clock)
    monkeypatch.setitem(runner._DO, "timing", lambda *_: timing_outcome(answers()))
    stages = [{"train": {"epochs": 1}}, {"quantize": {"epochs": 1, "fp32": "auto"}}]
    net: dict[str, Any] = {"model": {"python": "precise_nets:net"}, "data": {"digits": {"size": 8}}, "export": ["onnx"]}
    made = _bundle(recipe_file(**net, stages=stages, budgets={"size": "13 kB"}), "dist")
    assert timed
    timed.clear()
    again = _bundle(Path("dist/tiny/bundle/provenance/recipe.yaml"), "again")
    assert (timed, made == again) == ([], True)
    (quantize,) = (stage for stage in load_recipe("dist/tiny/bundle/provenance/recipe.yaml").stages[1:])
    assert quantize.plain()["fp32"] == ["1"]


def _bundle(recipe: Path, dist: str) -> bytes:
    pipeline.build(load_recipe(recipe), load_device("host"), Store("store"), dist=Path(dist))
    return Path(dist, "tiny/tiny.zip").read_bytes()
