"""Nets of many structures lose channels where they can, answer right afterwards, and say why layers stay whole."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import net_zoo
import pytest
import torch
from net_zoo import NETS
from net_zoo import zoo as zoo
from net_zoo.blocks import Run, conv, net, shuffled
from torch import Tensor, nn
from torch_factories import context, reloaded

from edgepack.compress.stages import distill, factorize, prune
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.models.candidate import Candidate
from edgepack.models.structure.dependency_groups import survey
from edgepack.models.structure.surgery import first, outputs, shrink

HALF = prune.Config.model_validate({"ratio": "50 %"})
BLOCKS_OF_4 = Quantization(channel_multiple=4)

# Layers that keep all their channels besides the last one, and why.
WHOLE = {
    "elman": {"b": "it feeds the RNN 'rnn', which cannot be resized"},
    "parts by number": {"stem": r"the model's code assumes this number of channels, at 'm0', .*py:\d+: .*split"},
    "slices by number": {
        "m0": r"the model's code assumes this number of channels, at 'm1', .*(__init__|blocks).py:\d+"
    },
    "view by number": {"m0": "the model's code assumes this number of channels"},
    "channel shuffle": {"m0": "all its channels depend on each other"},
    "own norm": {"m0": "it feeds the Scaled 'm1', which cannot be resized"},
    "mean of channels": {"m0": "its channels are mixed by 'mean' at 'm1'"},
    "frozen": dict.fromkeys(("stem", "m0"), "it is frozen"),
    "vit": {
        **dict.fromkeys(("patch", "out", "thin"), "its channels are combined with the parameter 'place'"),
        "qkv": r"its channels are mixed by 'bmm' at .*(__init__|blocks).py:\d+",
    },
    "multi head": dict.fromkeys(
        ("patch", "layer.self_attn.out_proj", "layer.linear2"), "it feeds the MultiheadAttention 'layer.self_attn'"
    ),
    "auxiliary": {
        "a": r"the model's code assumes this number of channels in training, at 'aside', .*(__init__|blocks).py:\d+",
        **dict.fromkeys(("aside", "second"), "it does not run in inference"),
    },
    "standardised": {
        "stem": "its channels are mixed by a weight that is computed at 'm0'",
        "m0": r"its weight is read by other code at 'm0', .*(__init__|blocks).py:\d+",
    },
    "positions": {"stem": "its channels are combined with the buffer 'm0.table'"},
    "experts": {"m0.gate": r"its channels are mixed by 'argmax' at 'm0', .*(__init__|blocks).py:\d+"},
    "rolled channels": {"m0": r"its channels are mixed by 'roll' at 'm1', .*(__init__|blocks).py:\d+"},
    "sorted channels": {"m0": r"its channels are mixed by 'sort' at 'm1', .*(__init__|blocks).py:\d+"},
    "some shifted": {
        "m0": "outputs would change even though nothing uses the removed channels, perhaps because its channels are "
        r"split by number with 'slice' at 'm1', .*(__init__|blocks).py:\d+"
    },
    "mixer": dict.fromkeys(("tokens.2", "channels.2", "patch"), "all its channels depend on each other"),
}
REFUSED = {
    "spread out": r"no layer can lose channels: 0: its channels are mixed by 'sort' at '1', ",
    "elman alone": "head gives the model's output, and there is no other convolution, Linear, LSTM or GRU "
    "('rnn' is a RNN",
    "all frozen": "no layer can lose channels: stem, m0, m2, m4: it is frozen (requires_grad is False)",
}


def answers(module: nn.Module, candidate: Candidate) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    (example,) = candidate.example_inputs(4)
    if example.is_floating_point():
        example = torch.rand(example.shape, generator=generator)
    else:
        example = torch.randint(0, 40, example.shape, generator=generator)
    with torch.no_grad():
        given: Tensor = module.eval()(example)
    return given


@pytest.mark.parametrize("name", [name for name in NETS if name not in REFUSED])
def test_all_layers_that_can_lose_half_of_their_channels(name: str, tmp_path: Path) -> None:
    start = net_zoo.candidate(name)
    had = outputs(start.module)
    made = prune.dry_run(start, HALF, BLOCKS_OF_4)
    now = outputs(made.module)
    whole = WHOLE.get(name, {})
    layers = [layer for layer in now if now[layer] != 3]
    assert {layer for layer in layers if now[layer] == had[layer]} == {layer for layer in whole if now[layer] != 3}
    assert {now[layer] / had[layer] for layer in layers if layer not in whole} <= {0.5, 2 / 3}  # 24 -> 16
    assert torch.equal(answers(reloaded(made, tmp_path / "saved").module, made), answers(made.module, made))


@pytest.mark.parametrize("name", WHOLE)
def test_layers_that_stay_whole_are_told_with_the_reason(name: str) -> None:
    start = net_zoo.candidate(name)
    found = survey(start.module.eval(), start.example_inputs(2)).whole
    for layer, why in WHOLE[name].items():
        assert re.match(why, found[layer]), found[layer]


@pytest.mark.parametrize("name", REFUSED)
def test_nets_without_a_layer_to_prune_are_refused_in_words(name: str) -> None:
    with pytest.raises(StageError) as failure:
        prune.dry_run(net_zoo.candidate(name), HALF, BLOCKS_OF_4)
    assert REFUSED[name] in failure.value.message
    assert ("only convolutions, Linear," in failure.value.hint) == (name == "elman alone")
    assert "ratio" not in failure.value.hint and "channel_multiple" not in failure.value.hint


@pytest.mark.parametrize("name", NETS)
def test_every_net_is_distilled_and_factorized_or_refused_in_words(name: str) -> None:
    """Whatever fails fails as a StageError; nothing of a library's comes through."""
    for stage, config in (
        (distill, distill.Config.model_validate({"compression": 1.5})),
        (distill, distill.Config.model_validate({"compression": 1.2, "scale": "depth"})),
        (factorize, factorize.Config.model_validate({"rank": 4})),
    ):
        start = net_zoo.candidate(name)
        try:
            made = stage.dry_run(start, config, BLOCKS_OF_4)
        except StageError as error:
            assert error.message and error.hint
        else:
            assert answers(made.module, made).shape == (4, 3)


class Case:
    """What lies between two layers: the channels of the first that go, and the inputs of the last that these reach."""

    def __init__(self, between: Callable[[], nn.Module], quiet: list[int], columns: list[int], **widths: int) -> None:
        self.between, self.quiet, self.columns, self.widths = between, quiet, columns, widths

    def net(self) -> nn.Module:
        torch.manual_seed(0)
        first, last = self.widths.get("first", 8), self.widths.get("last", 8)
        layers = {"first": conv(1, first), "between": self.between(), "last": conv(last, 8), "head": nn.Linear(8, 3)}
        return Run(lambda m, x: m.head(torch.relu(m.last(m.between(m.first(x)))).mean((2, 3))), **layers)


QUIET = [1, 2, 4, 7]
CASES = {
    "relu": Case(nn.ReLU, QUIET, QUIET),
    "prelu": Case(lambda: nn.PReLU(8), QUIET, QUIET),
    "depthwise": Case(lambda: conv(8, 8, groups=8), QUIET, QUIET),
    "multiplier": Case(lambda: conv(8, 24, groups=8), QUIET, [3 * c + k for c in QUIET for k in range(3)], last=24),
    "multiplier up": Case(
        lambda: nn.ConvTranspose2d(8, 16, 2, groups=8), QUIET, [2 * c + k for c in QUIET for k in range(2)], last=16
    ),
    "no statistics": Case(lambda: nn.BatchNorm2d(8, track_running_stats=False), QUIET, QUIET),
    "not affine": Case(lambda: nn.BatchNorm2d(8, affine=False), QUIET, QUIET),
    "instance norm": Case(lambda: nn.InstanceNorm2d(8, affine=True), QUIET, QUIET),
    "pixel shuffle": Case(lambda: nn.PixelShuffle(2), [*range(4, 12)], [1, 2], first=16, last=4),
    "pixel unshuffle": Case(lambda: nn.PixelUnshuffle(2), [0, 5], [*range(4), *range(20, 24)], last=32),
    "chunk": Case(
        lambda: Run(lambda m, x: (lambda a, b: a * b.sigmoid())(*x.chunk(2, 1))), [0, 3, 4, 7], [0, 3], last=4
    ),
    "glu": Case(lambda: nn.GLU(1), [0, 3, 4, 7], [0, 3], last=4),
    "every second": Case(lambda: Run(lambda m, x: x[:, ::2] - x[:, 1::2]), [2, 3], [1], last=4),
    "cat": Case(lambda: Run(lambda m, x: torch.cat([x, x.relu()], 1)), QUIET, QUIET + [8 + c for c in QUIET], last=16),
    "shuffle": Case(lambda: Run(lambda m, x: shuffled(x)), [0, 2, 4, 6], [0, 1, 4, 5]),
    "upsampled": Case(lambda: nn.Upsample(scale_factor=2, mode="bilinear"), QUIET, QUIET),
    "circular": Case(lambda: Run(lambda m, x: nn.functional.pad(x, (1, 1, 1, 1), mode="circular")), QUIET, QUIET),
    "largest": Case(lambda: Run(lambda m, x: x.flatten(2).topk(4).values.unflatten(2, (2, 2))), QUIET, QUIET),
    "median": Case(lambda: Run(lambda m, x: x.median(3, True)[0] + x.kthvalue(2)[0][..., None]), QUIET, QUIET),
    "sorted": Case(lambda: Run(lambda m, x: x.sort(2).values + x.cummax(3).values + x.cumsum(2)), QUIET, QUIET),
    "rolled": Case(lambda: Run(lambda m, x: x.roll((2, 1), (2, 3))), QUIET, QUIET),
    "pooled": Case(lambda: nn.Sequential(nn.MaxPool2d(3, 1), nn.AvgPool2d(2), nn.Hardswish()), QUIET, QUIET),
}


@pytest.mark.parametrize("name", CASES)
def test_channels_that_nothing_reads_go_without_a_change(name: str) -> None:
    """Which inputs of the last layer those channels reach is written down here, and not asked of the product."""
    case = CASES[name]
    module = case.net().eval()
    with torch.no_grad():
        for parameter in module.between.parameters():
            parameter.uniform_(0.5, 1.5)
        module.last.weight[:, case.columns] = 0
    picture, whole = torch.rand(3, 1, 8, 8), outputs(module)["first"]
    with torch.no_grad():
        expected = module(picture)
    worth = torch.ones(whole)
    worth[case.quiet] = 0
    share = 1 - len(case.quiet) / whole
    shrink(module, picture, keep={"first": share}, score=lambda group: worth, multiple=1)
    assert module.first.out_channels == whole - len(case.quiet)
    assert module.last.in_channels == case.widths.get("last", 8) - len(case.columns)
    with torch.no_grad():
        torch.testing.assert_close(module(picture), expected)


def test_a_grouped_transposed_convolution_loses_the_same_of_each_group() -> None:
    module = net(nn.ConvTranspose2d(16, 32, 4, stride=2, groups=4), nn.ReLU(), conv(32, 16)).eval()
    gone = [group * 8 + place for group in range(4) for place in (1, 2, 6)]
    with torch.no_grad():
        module.m2.weight[:, gone] = 0
    picture = torch.rand(3, 1, 8, 8)
    expected = module(picture)
    worth = torch.tensor([1.0, 0, 0, 1, 1, 1, 0, 1])
    shrink(module, picture, keep={"m0": 5 / 8}, score=lambda group: worth, multiple=1)
    assert (module.m0.in_channels, module.m0.out_channels, module.m0.groups) == (16, 20, 4)
    torch.testing.assert_close(module(picture), expected)


def test_a_grouped_convolution_that_comes_to_look_depthwise_is_none() -> None:
    """Of 2 channels a group one goes, of its inputs first and of its outputs then."""
    module = net(conv(16, 16, groups=8), nn.ReLU(), conv(16, 16)).eval()
    shrink(module, torch.zeros(2, 1, 8, 8), keep=0.5, score=first, multiple=8)
    assert (module.m0.in_channels, module.m0.out_channels, module.m0.groups) == (8, 8, 8)
    assert module(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_one_layer_in_two_places_and_one_weight_in_two_layers_stay_so(tmp_path: Path) -> None:
    made = prune.dry_run(net_zoo.candidate("tied"), HALF, BLOCKS_OF_4)
    for module in (made.module, reloaded(made, tmp_path / "saved").module):
        assert module.m0.weight is module.m2.weight and module.m4 is module.m6
        assert module.m4.weight.shape == (8, 8, 3, 3)


def test_one_weight_there_and_back_loses_the_same_channels() -> None:
    """Where nothing comes of a channel, its row of the weight is not read: the way back included."""
    module = net_zoo.candidate("there and back").module.eval()
    with torch.no_grad():
        for tensor in (module.a.weight, module.a.bias, module.b.weight, module.b.bias):
            tensor[::2] = 0
    picture, worth = torch.rand(3, 1, 8, 8), torch.arange(16) % 2
    expected = module(picture)
    shrink(module, picture, keep=0.5, score=lambda group: worth, multiple=4)
    assert (module.a.weight.shape, module.b.weight.shape) == ((8, 64), (8, 1, 3, 3))
    torch.testing.assert_close(module(picture), expected)


def test_a_layer_with_a_part_of_the_channels_is_told_with_the_rule() -> None:
    """Two channels of the stem go with one of the branch's last layer, so that it keeps 4."""
    config = prune.Config.model_validate({"ratio": "50 %", "steps": 1, "recover": {"epochs": 0}})
    made = prune.run(net_zoo.candidate("shuffle unit"), config, context(quantization=Quantization(channel_multiple=8)))
    assert made.notes[0] == (
        "asked for 50 % fewer channels; every layer keeps a multiple of 8 except m0.branch.4, m1.branch.4, "
        "whose channels are removed with those of stem"
    )
    assert {"stem: 16 -> 8 channels", "m0.branch.4: 8 -> 4 channels"} <= {*made.notes}


def test_a_frozen_part_is_not_touched_and_stays_frozen(tmp_path: Path) -> None:
    start = net_zoo.candidate("frozen")
    before = copy.deepcopy(start.module.state_dict())
    made = prune.dry_run(start, HALF, BLOCKS_OF_4)
    for module in (made.module, reloaded(made, tmp_path / "saved").module):
        frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
        assert frozen == ["stem.weight", "stem.bias", "m0.weight", "m0.bias"]
        assert torch.equal(module.m0.weight, before["m0.weight"])
        assert module.m2.out_channels == 8


def test_to_spare_the_layer_that_is_named_helps() -> None:
    """The way out that an error names is taken: nothing but what it stands for stays."""
    config = prune.Config.model_validate({"ratio": "50 %", "exclude": ("m0",)})
    made = prune.dry_run(net_zoo.candidate("squeeze excite"), config, BLOCKS_OF_4)
    assert [*outputs(made.module).values()] == [8, 16, 4, 16, 8, 3]
    with pytest.raises(StageError, match="every layer that could lose channels is excluded") as failure:
        prune.dry_run(
            net_zoo.candidate("flat"), prune.Config.model_validate({"ratio": "50 %", "exclude": ("*",)}), BLOCKS_OF_4
        )
    assert failure.value.hint == "exclude fewer layers"
