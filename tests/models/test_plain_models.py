"""Models of users that come wrapped, or with weights that are computed each time."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch_factories import SIGNATURE, reloaded

from edgepack.config import plugins
from edgepack.core.errors import StageError
from edgepack.models.candidate import Candidate
from edgepack.models.checks.steady import check_made_again
from edgepack.models.notes import collected
from edgepack.models.sources.python.plain import folded, plain

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, of the norms that it replaced

SOURCE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_plain_models import net, old, new, spectral, old_spectral, masked, twice, frozen, MAKERS
def make(how): return MAKERS[how]()
"""


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(6, 3))


def _changed(change: Any) -> Any:
    model = net()
    for i in (0, 4):
        change(model[i])
    return model


def old() -> Any:
    return _changed(weight_norm)


def new() -> Any:
    return _changed(parametrizations.weight_norm)


def spectral() -> Any:
    return _changed(parametrizations.spectral_norm)


def old_spectral() -> Any:
    return _changed(spectral_norm)


def masked() -> Any:
    return _changed(lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5))


def twice() -> Any:
    return _changed(lambda layer: parametrizations.spectral_norm(parametrizations.weight_norm(layer)))


def other_dimension() -> Any:
    return _changed(lambda layer: weight_norm(layer, dim=1))


def whole() -> Any:
    return _changed(lambda layer: weight_norm(layer, dim=None))


def frozen() -> Any:
    model = new()
    for weight in model.parameters():
        weight.requires_grad_(False)
    return model


MAKERS = {each.__name__: each for each in (old, new, spectral, old_spectral, masked, twice, whole, other_dimension)}
PICTURES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def nets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("wrapped_nets.py").write_text(SOURCE)


def start(how: str, **settings: Any) -> Candidate:
    model = {"python": "wrapped_nets:make", "args": {"how": how}, **settings}
    return Candidate.start(plugins.choose("models", model), SIGNATURE)


def answers(module: Any) -> torch.Tensor:
    with torch.no_grad():
        given: torch.Tensor = module.eval()(PICTURES)
    return given


def stirred(how: str) -> Any:
    """Its weights as after some training."""
    model = MAKERS[how]()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + torch.rand(weight.shape))
        model.train()(PICTURES)
    return model


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize("how", MAKERS)
def test_weights_that_are_computed_are_folded_and_the_model_answers_alike(how: str, tmp_path: Path) -> None:
    made = start(how)
    assert sorted(made.module.state_dict()) == ["0.bias", "0.weight", "4.bias", "4.weight"]
    assert all(weight.requires_grad and weight.is_leaf for weight in made.module.parameters())
    torch.testing.assert_close(answers(made.module), answers(MAKERS[how]()))
    assert made.notes[0].startswith("folded into plain weights: ") and "'0'" in made.notes[0]
    assert torch.equal(answers(reloaded(made, tmp_path / "saved").module), answers(made.module))


@pytest.mark.parametrize("how", MAKERS)
def test_what_was_folded_is_made_again_with_the_same_weights(how: str) -> None:
    def make() -> nn.Module:
        return folded(plain(MAKERS[how]()), (PICTURES,))

    check_made_again(make(), make, (PICTURES,), "the model")
    kept = dict(make().state_dict())  # without the versions that torch notes beside the tensors
    again = make()
    again.load_state_dict(kept)
    again.load_state_dict(copy.deepcopy(make()).state_dict())


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize("how", MAKERS)
def test_a_checkpoint_from_before_the_folding_fits(how: str) -> None:
    before = stirred(how)
    torch.save(before.state_dict(), "weights.pth")
    torch.testing.assert_close(answers(start(how, checkpoint="weights.pth").module), answers(before))


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(("saved", "named"), [("old", "new"), ("new", "old"), ("whole", "new"), ("old", "spectral")])
def test_weight_norm_of_a_checkpoint_is_folded_whatever_the_model_has(saved: str, named: str) -> None:
    before = stirred(saved)
    torch.save({"state_dict": {f"model.{name}": each for name, each in before.state_dict().items()}}, "weights.pth")
    torch.testing.assert_close(answers(start(named, checkpoint="weights.pth").module), answers(before))


@pytest.mark.usefixtures("nets")
def test_a_checkpoint_of_plain_weights_fits_a_model_with_weight_norm() -> None:
    before = net()
    torch.save(before.state_dict(), "weights.pth")
    assert torch.equal(answers(start("old", checkpoint="weights.pth").module), answers(before))


def test_frozen_weights_stay_parameters() -> None:
    inside = folded(plain(frozen()), (PICTURES,))
    assert sorted(name for name, _ in inside.named_parameters()) == ["0.bias", "0.weight", "4.bias", "4.weight"]
    assert not any(weight.requires_grad for weight in inside.parameters())


def test_what_is_folded_is_a_copy() -> None:
    kept = old()
    folded(plain(kept), (PICTURES,))
    assert "0.weight_g" in kept.state_dict()


def test_a_parametrization_that_answers_otherwise_when_it_is_folded_is_refused() -> None:
    class Noise(nn.Module):  # type: ignore[misc]
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + torch.rand(weight.shape)

    model = net()
    nn.utils.parametrize.register_parametrization(model[0], "weight", Noise())
    with pytest.raises(StageError, match="the Noise of '0' gives other outputs"):
        folded(model, (PICTURES,))


class Wrapper(nn.Module):  # type: ignore[misc]
    """Stands for DistributedDataParallel, which wants a group of processes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot pickle ProcessGroup")


class Parts(nn.Module):  # type: ignore[misc]
    def __init__(self, one: nn.Module) -> None:
        super().__init__()
        self.one = one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.one(x)
        return given


def _distributed(module: nn.Module) -> nn.Module:
    return type("DistributedDataParallel", (Wrapper,), {"__module__": "torch.nn.parallel.distributed"})(module)


@pytest.mark.parametrize(
    ("wrap", "kind", "names"),
    [
        (nn.DataParallel, "DataParallel", "0.weight"),
        (_distributed, "DistributedDataParallel", "0.weight"),
        (torch.compile, "OptimizedModule", "0.weight"),
        (lambda model: torch.compile(_distributed(model)), "OptimizedModule", "0.weight"),
        (torch.optim.swa_utils.AveragedModel, "AveragedModel", "0.weight"),
        (lambda model: Parts(torch.compile(model)), "OptimizedModule", "one.0.weight"),
    ],
    ids=["data parallel", "distributed", "compiled", "both", "averaged", "a part"],
)
def test_wrappers_are_taken_off_with_a_note(wrap: Any, kind: str, names: str) -> None:
    with collected() as notes:
        inside = plain(wrap(net()))
    assert next(iter(inside.state_dict())) == names
    assert torch.equal(answers(inside), answers(net()))
    assert notes[0] == f"taken out of its {kind}: the model inside is compressed"


class Doubled(nn.DataParallel):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.module(x)


class Averaged(nn.Module):  # type: ignore[misc]
    """A user's own class, called as one of torch's."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * next(self.children())(x)


def _replaced(module: nn.Module) -> nn.Module:
    wrapped = nn.DataParallel(module)
    wrapped.forward = lambda x: 2 * net()(x)
    return wrapped


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        Doubled,
        _replaced,
        lambda model: type("AveragedModel", (Averaged,), {})(model=model),
        lambda model: type("DataParallel", (Averaged,), {})(module=model),
    ],
    ids=["a subclass", "its forward replaced", "without .module", "with .module"],
)
def test_what_computes_by_a_forward_of_its_own_is_no_wrapper(wrap: Any, part: bool) -> None:
    with collected() as notes:
        inside = plain(Parts(wrap(net())) if part else wrap(net()))
    torch.testing.assert_close(answers(inside), 2 * answers(net()))
    assert notes == []


def test_a_subclass_without_a_forward_of_its_own_is_a_wrapper() -> None:
    inside = plain(type("Mine", (nn.DataParallel,), {})(net()))
    assert next(iter(inside.state_dict())) == "0.weight"


def test_a_wrapped_part_of_two_names_is_taken_out_under_both() -> None:
    model = nn.Sequential(net(), nn.Linear(3, 3))
    wrapped = torch.compile(model[1])
    model[1] = wrapped
    model.append(wrapped)
    model[0][0].register_module("none", None)
    inside = plain(model)
    assert inside[1] is inside[2] and type(inside[1]) is nn.Linear
    torch.testing.assert_close(answers(inside), inside[1](inside[1](answers(net()))).detach())


def test_what_cannot_be_copied_is_told_by_its_class() -> None:
    with pytest.raises(StageError, match="the model, a Wrapper, cannot be copied: TypeError: cannot pickle Process"):
        plain(Wrapper(net()))


def test_not_numbers_are_no_matter_when_weights_are_folded() -> None:
    class Root(nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x[:, :1].abs().neg().sqrt(), x[:, 1:2] - torch.inf, x[:, 2:]], 1)

    model = nn.Sequential(*new(), Root())
    assert not folded(model, (PICTURES,))[0].state_dict().keys() - {"weight", "bias"}


def test_a_model_compiled_in_place_is_as_it_was() -> None:
    model = net()
    model.compile()
    inside = plain(model)
    assert inside._compiled_call_impl is None and torch.equal(answers(inside), answers(net()))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_size_become_float32(kind: torch.dtype) -> None:
    with collected() as notes:
        inside = plain(net().to(kind))
    assert {weight.dtype for weight in inside.parameters()} == {torch.float32}
    assert notes == [f"weights in {str(kind).removeprefix('torch.')} were converted to float32"]


def test_state_besides_tensors_is_refused_by_the_layer() -> None:
    class Counts(nn.Module):  # type: ignore[misc]
        def get_extra_state(self) -> Any:
            return {"seen": 3}

        def set_extra_state(self, state: Any) -> None: ...

    with pytest.raises(StageError) as failure:
        plain(nn.Sequential(net(), Counts()))
    assert failure.value.message.startswith("'1', a Counts, has state that is not tensors (get_extra_state)")
    assert "register_buffer" in failure.value.hint
