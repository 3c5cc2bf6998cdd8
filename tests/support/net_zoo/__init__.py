"""Small nets of the kinds that people bring, a plugin of models: where `zoo` is imported, {"zoo": "inception"} is one.

Each takes pictures of 1 x 8 x 8, sound of 1 x 64 or texts of 12 tokens, and tells three classes apart.
"""

from collections.abc import Callable

import pytest
import torch
from factories import published
from torch import nn
from torch.nn import functional

from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import Candidate, Factory
from net_zoo.blocks import (
    Attention,
    Auxiliary,
    ConvNeXtBlock,
    Functional,
    MultiHead,
    Parts,
    Positions,
    Run,
    Scaled,
    Standardised,
    chosen,
    conv,
    dense,
    frozen,
    gated,
    inception,
    mbconv,
    mixer,
    net,
    over_channels,
    recurrent,
    recurrent_alone,
    rep_vgg,
    shuffle_unit,
    sound,
    squeeze_excite,
    tcn_block,
    there_and_back,
    tied,
    unet,
    watched,
    without_gradient,
    words,
)

PICTURE, SOUND, TEXT = (
    TensorSpec(name="input", shape=(1, 8, 8)),
    TensorSpec(name="input", shape=(1, 64)),
    TensorSpec(name="input", shape=(12,), dtype="int64"),
)
LABELS = ("rows", "columns", "squares")


class Config(Frozen):
    zoo: str


def trained(config: Config, signature: Signature) -> bool:
    return False


def build(config: Config, signature: Signature) -> nn.Module:
    return NETS[config.zoo]()


@pytest.fixture(autouse=True)
def zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    published(monkeypatch, "models", "zoo", __name__)


def candidate(name: str) -> Candidate:
    torch.manual_seed(0)
    spec = SOUND if name in SOUNDS else TEXT if name in TEXTS else PICTURE
    factory = Factory(model="zoo", config={"zoo": name}, signature=Signature(inputs=(spec,), labels=LABELS))
    return Candidate(module=NETS[name](), factory=factory)


SOUNDS = ("keywords", "tcn", "gru", "lstm", "elman", "grouped sound", "gated")
WITHOUT_GRADIENT = {  # layers, by the net
    "gated": ("two.residual",),
    "watched": ("m0.aside",),
    "backbone held": ("stem", "m0.a"),
    "experts": ("m0.gate",),
}
TEXTS = ("words",)
NETS: dict[str, Callable[[], nn.Module]] = {
    "keywords": lambda: sound(nn.Conv1d(16, 16, 3, stride=2), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 16, 3)),
    "grouped sound": lambda: sound(
        nn.Conv1d(16, 16, 3, groups=16), nn.Conv1d(16, 32, 1), nn.ConvTranspose1d(32, 16, 2)
    ),
    "tcn": lambda: sound(tcn_block(1), tcn_block(2)),
    "gru": lambda: recurrent(nn.GRU),
    "lstm": lambda: recurrent(nn.LSTM),
    "elman": lambda: recurrent(nn.RNN),
    "gru alone": lambda: recurrent_alone(nn.GRU),
    "elman alone": lambda: recurrent_alone(nn.RNN),
    "volume": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 1)),
        nn.Conv3d(1, 16, (1, 3, 3)),
        nn.BatchNorm3d(16),
        nn.ReLU(),
        nn.Conv3d(16, 16, 1),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    ),
    "multiplier": lambda: net(nn.Conv2d(16, 32, 3, groups=16), nn.ReLU(), conv(32, 16)),
    "multiplier up": lambda: net(nn.ConvTranspose2d(16, 32, 2, stride=2, groups=16), nn.ReLU(), conv(32, 16)),
    "grouped": lambda: net(conv(16, 16, groups=4), nn.GroupNorm(4, 16), conv(16, 16, groups=2)),
    "grouped up": lambda: net(nn.ConvTranspose2d(16, 32, 4, stride=2, groups=4), nn.ReLU(), conv(32, 16)),
    "pixel shuffle": lambda: net(conv(16, 64), nn.PixelShuffle(2), conv(16, 16)),
    "pixel unshuffle": lambda: net(conv(16, 16), nn.PixelUnshuffle(2), conv(64, 16)),
    "channel shuffle": lambda: net(conv(16, 16, groups=4), nn.ChannelShuffle(4), conv(16, 16, groups=4)),
    "shuffle unit": lambda: net(shuffle_unit(), shuffle_unit(), conv(16, 16)),
    "parts by number": lambda: net(Parts(written=True)),
    "parts by layer": lambda: net(Parts(written=False)),
    "halves": lambda: net(conv(16, 32), nn.GLU(1), conv(16, 16)),
    "chunks": lambda: net(
        conv(16, 32), Run(lambda m, x: (lambda a, b: a * torch.sigmoid(b))(*x.chunk(2, 1))), conv(16, 16)
    ),
    "slices by number": lambda: net(conv(16, 16), Run(lambda m, x: x[:, :8] + x[:, 8:]), conv(8, 16)),
    "every second": lambda: net(conv(16, 16), Run(lambda m, x: x[:, ::2] - x[:, 1::2]), conv(8, 16)),
    "view by number": lambda: net(
        conv(16, 16), Run(lambda m, x: x.view(-1, 16, 64).unflatten(2, (8, 8))), conv(16, 16)
    ),
    "maxout": lambda: net(conv(16, 32), Run(lambda m, x: x.view(len(x), -1, 2, *x.shape[2:]).amax(2)), conv(16, 16)),
    "no statistics": lambda: net(conv(16, 16), nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU(), conv(16, 16)),
    "not affine": lambda: net(conv(16, 16), nn.BatchNorm2d(16, affine=False), nn.ReLU(), conv(16, 16)),
    "instance norms": lambda: net(
        conv(16, 16), nn.InstanceNorm2d(16), conv(16, 16), nn.InstanceNorm2d(16, affine=True)
    ),
    "bare norms": lambda: net(nn.GroupNorm(1, 16, affine=False), conv(16, 16), over_channels(nn.LayerNorm(16))),
    "own norm": lambda: net(conv(16, 16), Scaled(), conv(16, 16), nn.ReLU(), conv(16, 16)),
    "prelu": lambda: net(conv(16, 16), nn.PReLU(16), conv(16, 16), nn.PReLU()),
    "flat": lambda: nn.Sequential(
        conv(1, 16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 3)
    ),
    "squeeze excite": lambda: net(conv(16, 16), squeeze_excite(), conv(16, 16)),
    "mbconv": lambda: net(mbconv(), mbconv()),
    "convnext": lambda: net(ConvNeXtBlock(), ConvNeXtBlock()),
    "vit": Attention,
    "multi head": MultiHead,
    "mixer": mixer,
    "unet": unet,
    "dense": lambda: net(dense(), width=32),
    "inception": lambda: net(inception(), width=24),
    "rep vgg": lambda: net(rep_vgg(), rep_vgg()),
    "functional": Functional,
    "tied": tied,
    "padded shortcut": lambda: net(
        Run(
            lambda m, x: functional.pad(x, (0, 0, 0, 0, 4, 4)) + m.b(torch.relu(m.a(x))), a=conv(16, 16), b=conv(16, 24)
        ),
        width=24,
    ),
    "frozen": lambda: frozen("stem", "m0"),
    "all frozen": frozen,
    "gated": gated,
    "watched": lambda: net(Run(watched, aside=conv(16, 16), b=conv(16, 16)), nn.ReLU()),
    "backbone held": lambda: net(Run(without_gradient, a=conv(16, 16), b=conv(16, 16)), nn.ReLU()),
    "experts": lambda: net(Run(chosen, gate=nn.Linear(16, 2), a=conv(16, 16), b=conv(16, 16)), conv(16, 16)),
    "words": words,
    "auxiliary": Auxiliary,
    "standardised": lambda: net(Standardised(16, 16, 3), nn.ReLU(), conv(16, 16)),
    "positions": lambda: net(Positions(), conv(16, 16), nn.ReLU()),
    "circular": lambda: net(nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"), nn.ReLU(), conv(16, 16)),
    "rolled channels": lambda: net(conv(16, 16), Run(lambda m, x: x + x.roll(4, 1)), conv(16, 16)),
    "sorted channels": lambda: net(conv(16, 16), Run(lambda m, x: x.sort(1).values), conv(16, 16)),
    "some shifted": lambda: net(
        conv(16, 16), Run(lambda m, x: torch.cat([x[:, :8].roll(1, 2), x[:, 8:]], 1)), conv(16, 16)
    ),
    "largest": lambda: nn.Sequential(
        conv(1, 16), nn.ReLU(), Run(lambda m, x: x.flatten(2).topk(3).values.mean(-1)), nn.Linear(16, 3)
    ),
    "spread out": lambda: nn.Sequential(
        nn.Conv2d(1, 16, 8), Run(lambda m, x: x.sort(1).values), nn.Flatten(), nn.Linear(16, 3)
    ),
    "there and back": lambda: Run(there_and_back, a=nn.Linear(64, 16), b=conv(1, 16), head=nn.Linear(128, 3)),
    "mean of channels": lambda: net(
        conv(16, 16), Run(lambda m, x: x * torch.sigmoid(x.mean(1, keepdim=True))), conv(16, 16)
    ),
}
