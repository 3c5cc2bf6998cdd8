"""Models whose answers depend on chance, on the samples beside, or on what no state dict holds."""

import random
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from factories import at_work, device, recipe
from torch import nn
from torch.nn import functional
from torch_factories import SIGNATURE, learned
from torch_factories import tiny_models as tiny_models

from edgepack.compress.training import numerics
from edgepack.config import plugins
from edgepack.core.errors import StageError
from edgepack.core.process.random_numbers import own_random
from edgepack.models.candidate import Candidate
from edgepack.models.checks import steady as steady_checks
from edgepack.models.checks.steady import check_calls, check_in_process, check_made_again, same
from edgepack.models.checks.trial import some_inputs, tried
from edgepack.models.sources.python.plain import plain
from edgepack.workflows.build.steps import candidate as candidate_step
from edgepack.workflows.build.store import Store

INPUTS = some_inputs(SIGNATURE)


class Net(nn.Module):  # type: ignore[misc]
    """Two layers, with something between them."""

    def __init__(self, between: Any = nn.Identity(), held: Any = None, zeros: bool = False) -> None:  # noqa: B008
        super().__init__()
        self.a, self.b = nn.Linear(64, 16), nn.Linear(16, 3)
        self.between, self.held = between, held
        if zeros:
            nn.init.zeros_(self.b.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.b(self.between(torch.relu(self.a(x.flatten(1)))))
        return given


class Between(nn.Module):  # type: ignore[misc]
    def __init__(self, do: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.do = do

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.do(x)


class Counting(nn.Module):  # type: ignore[misc]
    seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return x + self.seen


@pytest.mark.parametrize(
    "between",
    [
        Between(partial(functional.dropout, p=0.5)),
        Between(lambda x: x + torch.randn_like(x)),
        Between(lambda x: x + float(numpy.random.rand())),
        Between(lambda x: x + random.random()),
        Counting(),
    ],
    ids=["dropout", "noise", "numpy", "python", "a counter"],
)
def test_other_outputs_each_time_are_refused_with_the_layer(between: nn.Module) -> None:
    with pytest.raises(StageError, match="gives other outputs each time for the same samples, from 'between' on"):
        check_calls(Net(between), INPUTS, "the model")


def _pictures(norm: nn.Module) -> nn.Module:
    """A norm of channels and pixels: 16 numbers are 4 channels of 2 x 2."""
    between = Between(lambda x: norm(x.reshape(-1, 4, 2, 2)).flatten(1))
    between.norm = norm
    return between


def test_a_batch_norm_that_cannot_do_without_others_is_told() -> None:
    with pytest.raises(StageError) as failure:
        tried(Net(nn.BatchNorm1d(16, track_running_stats=False)), SIGNATURE, "the model")
    assert failure.value.message == ("the model fails on a single sample: the batch norm 'between' keeps no statistics")
    assert "track_running_stats=True" in failure.value.hint


@pytest.mark.parametrize("kind", ["float64", "float16", "bfloat16", "int64", "bool", "complex64"])
def test_outputs_that_are_not_float32_are_refused_by_the_line_that_gives_them(kind: str) -> None:
    class Cast(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).to(getattr(torch, kind))

    with pytest.raises(StageError) as failure:
        tried(Cast(), SIGNATURE, "the model")
    assert failure.value.message.startswith(f"the model gives outputs in {kind}, not in float32, at test_steady.py")
    assert "float()" in failure.value.hint


@pytest.mark.parametrize(
    ("between", "why"),
    [
        (_pictures(nn.BatchNorm2d(4, track_running_stats=False)), "the batch norm 'between.norm' keeps no statistics"),
        (Between(lambda x: x - x.mean(0)), "from 'between' on"),
        (Between(lambda x: x / x.norm()), "from 'between' on"),
        (Between(lambda x: x.softmax(0)), "from 'between' on"),
        (Between(lambda x: x.roll(1, 0)), "from 'between' on"),
    ],
    ids=["batch norm", "mean", "norm", "softmax", "another sample"],
)
def test_answers_that_depend_on_the_samples_beside_are_refused(between: nn.Module, why: str) -> None:
    with pytest.raises(StageError, match=why) as failure:
        check_calls(Net(between), INPUTS, "the model")
    assert failure.value.hint


def test_norms_over_one_sample_are_none_of_these() -> None:
    nets = (nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4), nn.BatchNorm2d(4))
    for norm in nets:
        net = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.Flatten(), nn.Linear(4 * 36, 3))
        check_calls(net, INPUTS, "the model")
    check_calls(Net(nn.LayerNorm(16)), INPUTS, "the model")
    check_calls(Net(nn.Dropout(0.5)), INPUTS, "the model")


class Odd(nn.Module):  # type: ignore[misc]
    """Its outputs are odd in the first place, and are made from the pixels."""

    def __init__(self, odd: Callable[[torch.Tensor], torch.Tensor], between: nn.Module = nn.Identity()) -> None:  # noqa: B008
        super().__init__()
        self.net, self.odd = Net(between), odd

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = self.net(x)
        return torch.cat([self.odd(given[:, :1]), given[:, 1:]], 1)


@pytest.mark.parametrize("odd", [lambda x: x * torch.nan, lambda x: x - torch.inf, lambda x: x + torch.inf])
def test_numbers_that_are_not_finite_neither_stop_a_check_nor_hide_anything(odd: Any) -> None:
    check_calls(Odd(odd), INPUTS, "the model")
    check_made_again(Odd(odd), lambda: Odd(odd), INPUTS, "the model")
    with pytest.raises(StageError, match="the output for a sample depends on the rest of the batch"):
        check_calls(Odd(odd, Between(lambda x: x - x.mean(0))), INPUTS, "the model")
    with pytest.raises(StageError, match="gives other outputs each time"):
        check_calls(Odd(odd, Between(lambda x: x + torch.randn_like(x))), INPUTS, "the model")


@pytest.mark.parametrize("do", [torch.sqrt, lambda x: torch.log(x + 1e-6), lambda x: x**2.2])
def test_what_is_done_to_pixels_gives_numbers_for_noise(do: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert all(bool(do(each).isfinite().all()) for each in INPUTS)


def test_outputs_that_are_not_finite_at_other_places_are_others() -> None:
    one, two = torch.tensor([1.0, torch.nan]), torch.tensor([torch.nan, 1.0])
    assert same(one, one) and not same(one, two)
    assert not same(torch.tensor([1.0, torch.inf]), torch.tensor([1.0, -torch.inf]))
    assert not same(torch.tensor([1.0, torch.inf]), torch.tensor([2.0, torch.inf]))


def shuffled(draw: Callable[[], Any], **more: Any) -> Net:
    net = Net(held=draw(), **more)
    net.between = Between(lambda x: x[:, torch.as_tensor(net.held)])
    return net


class Buffered(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.rand(16), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.noise


class Listed(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(16, 16)]  # in no ModuleList

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.layers[0](x)
        return given


class Learning(nn.Module):  # type: ignore[misc]
    """Keeps a mean while it is trained, where no state dict sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: shuffled(lambda: torch.randperm(16)), "'held' of the Net"),
        (lambda: shuffled(lambda: numpy.random.permutation(16)), "'held' of the Net"),
        (lambda: shuffled(lambda: random.sample(range(16), 16)), "'held' of the Net"),
        (lambda: shuffled(lambda: numpy.random.permutation(16), zeros=True), "'held' of the Net"),
        (lambda: Net(Buffered()), "'noise' of 'between', a Buffered"),
        (lambda: Net(Listed()), "'layers' of 'between', a Listed"),
        (lambda: Net(Learning()), "'mean' of 'between', a Learning"),
    ],
    ids=["torch", "numpy", "python", "behind zeros", "a buffer not saved", "a list of layers", "learned on the side"],
)
def test_what_no_state_dict_holds_is_refused_by_its_name(make: Callable[[], nn.Module], named: str) -> None:
    with pytest.raises(StageError) as failure:
        check_made_again(make(), make, INPUTS, "the model")
    message = "the model, made again with the same weights, gives other outputs than before: "
    assert failure.value.message == f"{message}{named}, is in no state dict and differs"
    assert "register_buffer" in failure.value.hint


def test_a_structure_that_is_drawn_is_refused() -> None:
    def make() -> nn.Module:
        return Net(nn.Sequential(*(nn.Linear(16, 16) for _ in range(random.randint(1, 10**6) % 7))))

    with own_random(seed=0), pytest.raises(StageError, match="has another structure each time it is made"):
        for _ in range(4):
            check_made_again(make(), make, INPUTS, "the model")


def test_what_is_drawn_and_saved_or_drawn_alike_is_no_matter() -> None:
    def kept() -> nn.Module:
        net = Net()
        net.register_buffer("scale", torch.rand(16))
        net.between = Between(lambda x: x * net.scale)
        return net

    check_made_again(kept(), kept, INPUTS, "the model")
    again = partial(shuffled, lambda: numpy.random.default_rng(0).permutation(16))
    check_made_again(again(), again, INPUTS, "the model")


def test_the_checks_draw_nothing_from_what_comes_after() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(numpy.random.rand()), float(torch.rand(1))

    with numerics.deterministic(0, 1):
        expected = drawn()
    with numerics.deterministic(0, 1):
        made = Net()
        with own_random(seed=3):
            Net()
            drawn()
        with numerics.deterministic(0, 1):
            check_calls(made, INPUTS, "the model")
            assert drawn() == expected


def test_a_candidate_that_does_not_come_back_as_it_was_saved_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    what = recipe(model={"torchvision": "resnet18"}, data={"digits": {"size": 8}}, stages=["train"])
    work = at_work(what, device(), Store("store"))
    good, load = learned("mlp"), Candidate.load
    (tmp_path / "good").mkdir()
    good.save(tmp_path / "good")
    candidate_step._check_saved(work, good, tmp_path / "good")

    def damaged(folder: Path) -> Candidate:
        found = load(folder)
        with torch.no_grad():
            next(found.module.parameters()).neg_()
        return found

    monkeypatch.setattr(Candidate, "load", damaged)
    with pytest.raises(StageError, match="the saved model gives other outputs than before"):
        candidate_step._check_saved(work, good, tmp_path / "good")


IMPORTED = """
import torch
from torch import nn
DRAWN = torch.rand(3)
class Net(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.head, self.scale = nn.Linear(64, 3), scale
    def forward(self, x):
        return self.head(x.flatten(1)) * self.scale
def steady():
    return Net(torch.arange(3))
def drawn():
    return Net(DRAWN)
"""


def test_what_is_drawn_on_import_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process the same numbers come back; in the next, which goes on with the build, others do."""
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("imported_nets.py").write_text(IMPORTED)

    choices = (plugins.choose("models", {"python": f"imported_nets:{each}"}) for each in ("steady", "drawn"))
    steady, drawn = (Candidate.start(choice, SIGNATURE) for choice in choices)
    check_in_process(steady, INPUTS, "the model")
    with pytest.raises(StageError, match="loaded in another process, gives other outputs"):
        check_in_process(drawn, INPUTS, "the model")
    Path("imported_nets.py").write_text(f"{IMPORTED}\nraise RuntimeError('not twice')")
    with pytest.raises(StageError, match=r"cannot be loaded in another process: .*not twice"):
        check_in_process(steady, INPUTS, "the model")


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the process was killed by SIGSEGV"),
        ("os._exit(3)", "the process ended with the exit status 3"),
        ("time.sleep(60)", "gave no outputs within 1 s"),
    ],
)
def test_a_process_that_does_not_come_to_its_end_is_told_as_such(
    does: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it printed last is not the reason."""
    run = f"import os, signal, sys, time; print('UserWarning: a stray one', file=sys.stderr, flush=True); {does}"
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **how: real([command[0], "-c", run], **how))
    monkeypatch.setattr(steady_checks, "_PATIENCE", 1 if "sleep" in does else 60)
    with pytest.raises(StageError) as failure:
        check_in_process(learned("mlp"), INPUTS, "the model")
    assert why in failure.value.message and "stray" not in failure.value.message


def test_lazy_layers_learn_their_size_before_they_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("lazy_nets.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(3))"
    )
    made = Candidate.start(plugins.choose("models", {"python": "lazy_nets:net"}), SIGNATURE)
    assert made.module.state_dict()["1.weight"].shape == (3, 64)


def test_torchscript_is_refused() -> None:
    with pytest.raises(StageError, match="the model is TorchScript"):
        plain(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)))
