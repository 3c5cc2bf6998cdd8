"""How channels are followed and cuts are tried: rarely, without a trace left behind, and on what can be believed."""

import random
import re
from collections.abc import Callable, Sequence

import net_zoo
import numpy
import pytest
import torch
from net_zoo import zoo as zoo
from net_zoo.blocks import Run, conv, net
from torch import Tensor, nn
from torch.nn import functional

from edgepack.compress.stages import distill
from edgepack.compress.stages.factorize import sites
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.models.checks import changes
from edgepack.models.structure import channels
from edgepack.models.structure.dependency_groups import Survey, survey
from edgepack.models.structure.surgery import first, outputs, shrink

PICTURE = torch.zeros(2, 1, 8, 8)
WORDS = torch.zeros(2, 12, dtype=torch.int64)


def counted(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[str]:
    """One entry a call of a function of a module's."""
    calls: list[str] = []
    real: Callable[..., object] = getattr(owner, name)

    def call(*given: object, **named: object) -> object:
        calls.append(name)
        return real(*given, **named)

    monkeypatch.setattr(owner, name, call)
    return calls


def found(module: nn.Module, given: Tensor = PICTURE) -> Survey:
    return survey(module.eval(), (given,))


def able(module: nn.Module, given: Tensor = PICTURE) -> set[str]:
    return {name for group in found(module, given).groups for name in group.loses_outputs}


def test_many_widths_of_one_model_are_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traces, start = counted(monkeypatch, channels, "_found"), net_zoo.candidate("keywords")
    widths = [outputs(start.narrowed(share, multiple=4).module)["0"] for share in (0.75, 0.5, 0.25)]
    assert (widths, len(traces)) == ([12, 8, 4], 1)
    cold = net_zoo.candidate("keywords").narrowed(0.25, multiple=4).module
    assert outputs(start.narrowed(0.25, multiple=4).module) == outputs(cold)


def test_a_derived_student_costs_one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    traces, start = counted(monkeypatch, channels, "_found"), net_zoo.candidate("keywords")
    config = distill.Config.model_validate({"compression": 1.5})
    distill.dry_run(start, config, Quantization(channel_multiple=4))
    assert len(traces) == 1


@pytest.mark.parametrize("odd", [{7}, {0, 31}, set(range(32)), set()])
def test_odd_parts_among_many_are_told_apart_in_few_tries(odd: set[int]) -> None:
    tried: list[Sequence[int]] = []

    def fault(some: Sequence[int]) -> str:
        tried.append(some)
        return f"odd {next(each for each in some if each in odd)}" if odd & {*some} else ""

    good, reasons = changes.separated(range(32), fault)
    assert good == [each for each in range(32) if each not in odd]
    assert reasons == [f"odd {each}" if each in odd else "" for each in range(32)]
    assert len(tried) <= max(1, 2 * len(odd) * 5)
    assert changes.separated([], fault) == ([], [])


def test_parts_that_are_good_alone_and_not_together_keep_the_first() -> None:
    good, reasons = changes.separated("abcd", lambda some: "both" if {*"bd"} <= {*some} else "")
    assert (good, reasons) == ([*"abc"], ["", "", "", "both"])


def test_one_odd_layer_costs_few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = Run(lambda m, x: x[:, :8] + x[:, 8:])
    module = net(*(conv(16, 16) for _ in range(20)), halves, conv(8, 16))
    copies, tries = counted(monkeypatch, channels, "lively"), counted(monkeypatch, channels, "_fault")
    assert {*found(module).whole} == {"m19", "head"}
    assert len(copies) == 1 and len(tries) <= 11


def test_one_layer_used_by_hand_costs_factorize_few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    start = net_zoo.candidate("functional")
    start.module.after = nn.Sequential(conv(16, 16), *(conv(16, 16) for _ in range(15)))
    tries = counted(monkeypatch, sites, "_fault")
    names = [name for name, layer in start.module.named_modules() if isinstance(layer, nn.Conv2d)]
    why = sites._read_by_hand(start, names)
    assert [*why] == ["by_hand"] and len(tries) <= 10
    assert re.search(r"in other ways than calling it, at .*(__init__|blocks).py:\d+", why["by_hand"])


class Drawing(nn.Module):  # type: ignore[misc]
    """Draws from all three generators, and sets them."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            torch.manual_seed(random.randint(0, 9) + int(numpy.random.rand() * 9))
            random.seed(5)
            numpy.random.seed(5)
        return x + 0 * torch.rand(1)


def test_tracing_leaves_every_generator_as_it_was() -> None:
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    module = net(Drawing(), conv(16, 16), Run(lambda m, x: x[:, :8] + x[:, 8:]), conv(8, 16))
    before = torch.random.get_rng_state(), random.getstate(), numpy.random.get_state()
    for _ in ("cold", "remembered"):
        found(module)
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert all(map(numpy.array_equal, numpy.random.get_state(), before[2]))


def tied_words(call: Callable[[nn.Module, Tensor], Tensor], **more: nn.Module) -> nn.Module:
    table = nn.Embedding(40, 16)
    return Run(call, table=table, a=nn.Linear(16, 32), b=nn.Linear(32, 16), head=nn.Linear(40, 3), **more)


def shared_words() -> nn.Module:
    module = tied_words(
        lambda m, x: m.head(m.last(m.b(torch.relu(m.a(m.table(x).mean(1)))))), last=nn.Linear(16, 40, bias=False)
    )
    module.last.weight = module.table.weight
    return module


TIED = {
    "by hand": lambda: tied_words(
        lambda m, x: m.head(functional.linear(m.b(torch.relu(m.a(m.table(x).mean(1)))), m.table.weight))
    ),
    "the other side": lambda: tied_words(
        lambda m, x: m.head((m.table.weight @ m.b(torch.relu(m.a(m.table(x).mean(1)))).t()).t())
    ),
    "one parameter": shared_words,
}


@pytest.mark.parametrize("name", TIED)
def test_weights_tied_to_an_embedding_stay_whole_and_the_rest_is_pruned(name: str) -> None:
    module = TIED[name]()
    assert able(module, WORDS) == {"a"}
    assert found(module, WORDS).whole["b"].startswith("its channels are mixed by 'mm'")
    shrink(module, WORDS, keep=0.5, score=first, multiple=4)
    assert module.a.out_features == 16 and module(WORDS).shape == (2, 3)


def test_a_linear_whose_rows_are_looked_up_keeps_them() -> None:
    call = lambda m, x: m.head(m.b(functional.embedding(x, m.a.weight).mean(1)))  # noqa: E731
    module = Run(call, a=nn.Linear(16, 40), b=nn.Linear(16, 32), head=nn.Linear(32, 3))
    assert able(module, WORDS) == {"b"}


PIECES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "chunk": lambda m, x: sum(functional.linear(x, each) for each in m.odd.weight.chunk(2)),
    "split": lambda m, x: sum(functional.linear(x, each) for each in m.odd.weight.split(4)),
    "unbind": lambda m, x: torch.stack([x @ each for each in m.odd.weight.unbind()], 1)[:, :8],
    "slice": lambda m, x: functional.linear(x, m.odd.weight[:8]),
    "stack": lambda m, x: functional.linear(x, torch.cat([m.odd.weight, m.odd.weight])[:8]),
    "tensor_split": lambda m, x: functional.linear(x, m.odd.weight.tensor_split(2)[0]),
    "einsum": lambda m, x: torch.einsum("nc,oc->no", x, m.odd.weight)[:, :8],
    "product": lambda m, x: functional.linear(x, (m.odd.weight @ m.odd.weight.t())[:8]),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_of_a_weight_keep_their_layer_whole_and_the_rest_is_pruned(name: str) -> None:
    def call(m: nn.Module, x: Tensor) -> Tensor:
        inside = PIECES[name](m, m.b(torch.relu(m.a(x.flatten(1)))))
        if name == "split":
            inside = torch.cat([inside, inside], 1)
        return m.head(torch.relu(m.c(inside)))

    layers = {"a": nn.Linear(64, 16), "b": nn.Linear(16, 16), "odd": nn.Linear(16, 16), "c": nn.Linear(8, 16)}
    module = Run(call, **layers, head=nn.Linear(16, 3))
    assert {"a", "c"} <= able(module) and "odd" not in able(module)
    shrink(module, PICTURE, keep=0.5, score=first, multiple=4)
    assert module(PICTURE).shape == (2, 3)


@pytest.mark.parametrize("beside", ["x", "m.b.weight", "m.b.bias", "None", "3", "'text'", "x.shape"])
def test_an_output_that_no_operator_touched_is_let_pass(beside: str) -> None:
    call = lambda m, x: (m.c(m.b(m.a(x))).mean((2, 3)), eval(beside))  # noqa: E731, S307
    module = Run(call, a=conv(1, 16), b=conv(16, 16), c=conv(16, 3))
    kept = {"m.b.weight": {"a", "b"}, "m.b.bias": {"b"}}.get(beside, set())  # a weight is as wide as what it takes too
    assert able(module) == {"a", "b"} - kept


def test_what_cannot_be_followed_is_named_with_its_place() -> None:
    def fails(m: nn.Module, x: Tensor) -> Tensor:
        raise RuntimeError("no such luck")

    with pytest.raises(StageError, match=r"through this model, at 'm0', .*\.py:\d+: .* \(RuntimeError: no such luck\)"):
        found(net(Run(fails), conv(16, 16)))


def gated(blocks: int, gate: Callable[[Tensor, Tensor], Tensor], end: Callable[[Tensor], Tensor]) -> nn.Module:
    """Deep, and wrong without some of its channels: at the end each has its number added."""

    def call(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x).mean((2, 3))
        for layer in m.layers:
            x = gate(x, layer(x))
        return end(m.head(x + torch.arange(x.shape[1])))

    layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(blocks))
    return Run(call, stem=conv(1, 16), layers=layers, head=nn.Linear(16, 3))


CHANGED = "outputs would change even though nothing uses the removed channels"
OVERFLOWS = "with random weights its outputs overflow, so a cut cannot be checked"


@pytest.mark.parametrize("gate", [lambda x, y: x * y, lambda x, y: x + y * y, lambda x, y: x * y.sigmoid()])
def test_a_wrong_cut_of_a_deep_net_is_found(gate: Callable[[Tensor, Tensor], Tensor]) -> None:
    module = gated(60, gate, lambda x: x)
    assert found(module).whole["stem"] == CHANGED


@pytest.mark.parametrize("end", [lambda x: x, torch.sigmoid, lambda x: x.softmax(1)])
def test_a_net_whose_numbers_overflow_is_not_believed(end: Callable[[Tensor], Tensor]) -> None:
    module = gated(9, lambda x, y: (x + y).square().square(), end)
    assert found(module).whole["stem"] == OVERFLOWS


def test_outputs_that_are_infinite_by_design_are_compared() -> None:
    one = torch.tensor([float("-inf"), 1.0, 2.0])
    assert changes.difference(one, one.clone()) == ""
    assert changes.difference(one + torch.tensor([0, 0.5, 0]), one) == CHANGED
    assert changes.difference(torch.tensor([True]), torch.tensor([False])) == CHANGED
    assert changes.difference(torch.full((3,), float("nan")), torch.full((3,), float("nan"))) == OVERFLOWS
    assert changes.difference(torch.tensor([3.0]), torch.tensor([3e38])) == OVERFLOWS
    assert changes.difference(torch.zeros(2, 0), torch.zeros(2, 0)) == ""


@pytest.mark.parametrize("padding", [0, 1])
def test_patches_at_a_padded_border_have_all_channels(padding: int) -> None:
    def call(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(torch.relu(m.mix(functional.unfold(m.stem(x), 3, padding=padding))).mean(2))

    module = Run(call, stem=conv(1, 8), mix=nn.Conv1d(72, 16, 1), head=nn.Linear(16, 3))
    picture = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        module.mix.weight.view(16, 8, 9)[:, [1, 6]] = 0
        expected = module(picture)
    worth = torch.ones(8)
    worth[[1, 6]] = 0
    shrink(module.eval(), picture, keep={"stem": 0.75}, score=lambda group: worth, multiple=1)
    assert (module.stem.out_channels, module.mix.in_channels) == (6, 54)
    torch.testing.assert_close(module(picture), expected)
