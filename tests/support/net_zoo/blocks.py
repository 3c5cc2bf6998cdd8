"""What the nets of the zoo are made of."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Run(nn.Module):  # type: ignore[misc]
    """Named layers, and how they are called."""

    def __init__(self, call: Callable[..., Tensor], **layers: nn.Module | None) -> None:
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def net(*middle: nn.Module, width: int = 16) -> nn.Module:
    """A stem of 16 channels, what comes between, and a classifier of `width` channels."""
    named = {f"m{at}": layer for at, layer in enumerate(middle)}
    ends = {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(width, 3)}
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(1, 16, 3, padding=1), act=nn.ReLU(), **named, **ends))


def conv(inputs: int, outputs: int, size: int = 3, **more: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **more)


def sound(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(1, 16, 5, padding=2), nn.ReLU(), *middle, Run(lambda m, x: x.mean(-1)), nn.Linear(16, 3)
    )


class CausalConv(nn.Conv1d):  # type: ignore[misc]
    """Pads the past alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


def tcn_block(dilation: int) -> nn.Module:
    first, second = (CausalConv(16, 16, 3, dilation=dilation) for _ in range(2))
    return Run(lambda m, x: torch.relu(x + m.b(torch.relu(m.a(x)))), a=first, b=second)


def squeeze_excite(width: int = 16) -> nn.Module:
    def gate(m: nn.Module, x: Tensor) -> Tensor:
        return x * torch.sigmoid(m.up(torch.relu(m.down(x.mean((2, 3), keepdim=True)))))

    return Run(gate, down=nn.Conv2d(width, 8, 1), up=nn.Conv2d(8, width, 1))


def mbconv() -> nn.Module:
    wide = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.SiLU())
    deep = nn.Sequential(conv(32, 32, groups=32), nn.BatchNorm2d(32), nn.SiLU(), squeeze_excite(32))
    thin = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16))
    return Run(lambda m, x: x + m.thin(m.deep(m.wide(x))), wide=wide, deep=deep, thin=thin)


def shuffled(x: Tensor, groups: int = 2) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def shuffle_unit() -> nn.Module:
    def unit(m: nn.Module, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, 1)
        return shuffled(torch.cat([kept, m.branch(changed)], 1))

    branch = nn.Sequential(conv(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, groups=8), conv(8, 8, 1))
    return Run(unit, branch=branch)


class ConvNeXtBlock(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.deep, self.norm = conv(16, 16, 7, groups=16), nn.LayerNorm(16)
        self.wide, self.thin, self.scale = nn.Linear(16, 64), nn.Linear(64, 16), nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        inside = self.norm(self.deep(x).permute(0, 2, 3, 1))
        inside = self.scale * self.thin(functional.gelu(self.wide(inside)))
        return x + inside.permute(0, 3, 1, 2)


class Attention(nn.Module):  # type: ignore[misc]
    """A layer of a vision transformer on patches of 2 x 2, its heads cut by a view."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.patch, self.place = (
            heads,
            nn.Conv2d(1, width, 2, stride=2),
            nn.Parameter(torch.zeros(1, 16, width)),
        )
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.thin, self.head = nn.Linear(width, 32), nn.Linear(32, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        n, length, width = x.shape
        query, key, value = self.qkv(self.norm(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (query @ key.transpose(-1, -2) / width**0.5).softmax(-1)
        x = x + self.out((scores @ value).transpose(1, 2).reshape(n, length, width))
        x = x + self.thin(functional.gelu(self.wide(x)))
        return self.head(x.mean(1))


class MultiHead(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.layer = nn.Conv2d(1, 16, 2, stride=2), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def mixer() -> nn.Module:
    def mix(m: nn.Module, x: Tensor) -> Tensor:
        x = m.patch(x).flatten(2).transpose(1, 2)
        x = x + m.tokens(m.norm(x).transpose(1, 2)).transpose(1, 2)
        return m.head((x + m.channels(m.norm2(x))).mean(1))

    tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    channels = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
    ends = {"patch": nn.Conv2d(1, 24, 2, stride=2), "head": nn.Linear(24, 3)}
    return Run(mix, tokens=tokens, channels=channels, norm=nn.LayerNorm(24), norm2=nn.LayerNorm(24), **ends)


def recurrent(kind: type[nn.Module]) -> nn.Module:
    def heard(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(torch.relu(m.middle(m.rnn(torch.relu(m.b(torch.relu(m.a(x)))).transpose(1, 2))[0][:, -1])))

    layers = {
        "a": nn.Conv1d(1, 16, 5, stride=2),
        "b": nn.Conv1d(16, 16, 3, stride=2),
        "rnn": kind(16, 16, batch_first=True),
    }
    return Run(heard, **layers, middle=nn.Linear(16, 16), head=nn.Linear(16, 3))


def recurrent_alone(kind: type[nn.Module]) -> nn.Module:
    call = lambda m, x: m.head(m.rnn(x.view(-1, 8, 8))[0][:, -1])  # noqa: E731
    return Run(call, rnn=kind(8, 32, batch_first=True), head=nn.Linear(32, 3))


def unet() -> nn.Module:
    def whole(m: nn.Module, x: Tensor) -> Tensor:
        high = torch.relu(m.down1(x))
        low = torch.relu(m.down2(functional.max_pool2d(high, 2)))
        return m.out(torch.cat([m.up(low), high], 1)).mean((2, 3))

    layers = {"down1": conv(1, 16), "down2": conv(16, 32), "up": nn.ConvTranspose2d(32, 16, 2, stride=2)}
    return Run(whole, **layers, out=nn.Sequential(conv(32, 16), nn.ReLU(), nn.Conv2d(16, 3, 1)))


def dense() -> nn.Module:
    layers = {
        "a": nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), conv(16, 8)),
        "b": nn.Sequential(nn.BatchNorm2d(24), conv(24, 8)),
    }

    def block(m: nn.Module, x: Tensor) -> Tensor:
        x = torch.cat([x, m.a(x)], 1)
        return torch.cat([x, m.b(x)], 1)

    return Run(block, **layers)


def inception() -> nn.Module:
    branches = {"a": conv(16, 8, 1), "b": nn.Sequential(conv(16, 8, 1), nn.ReLU(), conv(8, 8)), "c": conv(16, 8, 1)}
    return Run(lambda m, x: torch.cat([m.a(x), m.b(x), m.c(functional.avg_pool2d(x, 3, 1, 1))], 1), **branches)


def rep_vgg() -> nn.Module:
    def branch(size: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(16, 16, size, padding=size // 2, bias=False), nn.BatchNorm2d(16))

    return Run(lambda m, x: torch.relu(m.a(x) + m.b(x) + m.c(x)), a=branch(3), b=branch(1), c=nn.BatchNorm2d(16))


class Parts(nn.Module):  # type: ignore[misc]
    """Parts of uneven sizes, written into the code or read from the layers that take them."""

    def __init__(self, *, written: bool) -> None:
        super().__init__()
        self.written, self.a, self.b, self.last = written, conv(5, 8), conv(11, 8), conv(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        sizes = [5, 11] if self.written else [self.a.in_channels, self.b.in_channels]
        first, second = x.split(sizes, 1)
        return self.last(torch.cat((self.a(first), self.b(second)), 1))


class Functional(nn.Module):  # type: ignore[misc]
    """Weights that are in no layer, and a layer's weight that is used by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.ParameterList(
            [nn.Parameter(torch.randn(16, 1, 3, 3)), nn.Parameter(torch.randn(8, 16, 3, 3))]
        )
        self.by_hand, self.after, self.head = conv(8, 16), conv(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for kernel in self.kernels:
            x = torch.relu(functional.conv2d(x, kernel))
        x = functional.conv2d(x, self.by_hand.weight, self.by_hand.bias, padding=1)
        return self.head(self.after(torch.relu(x)).mean((2, 3)))


def tied() -> nn.Module:
    """Two convolutions with one weight, and one that is used twice."""
    made = net(conv(16, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), twice := conv(16, 16), nn.ReLU(), twice)
    made.m2.weight = made.m0.weight
    return made


def frozen(*parts: str) -> nn.Module:
    made = net(conv(16, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), conv(16, 16))
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(not (not parts or name.startswith(parts)))
    return made


def words() -> nn.Module:
    call = lambda m, x: m.head(torch.relu(m.hidden(m.table(x).mean(1))))  # noqa: E731
    return Run(call, table=nn.Embedding(40, 16), hidden=nn.Linear(16, 16), head=nn.Linear(16, 3))


class Scaled(nn.Module):  # type: ignore[misc]
    """A norm of one's own: over the channels, with a weight in no layer that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.weight[:, None, None]


def over_channels(*middle: nn.Module) -> nn.Module:
    """A LayerNorm where channels come last."""
    return Run(lambda m, x: m.inside(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), inside=nn.Sequential(*middle))


class Standardised(nn.Conv2d):  # type: ignore[misc]
    """Convolves with what it makes of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


class Positions(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(1, 16, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Auxiliary(nn.Module):  # type: ignore[misc]
    """Has a second head that runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(1, 16), conv(16, 16), nn.Linear(16, 3)
        self.aside, self.second = nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        middle = torch.relu(self.a(x))
        logits = self.head(torch.relu(self.b(middle)).mean((2, 3)))
        return logits + 0.1 * self.second(torch.relu(self.aside(middle.mean((2, 3))))) if self.training else logits


def gated() -> nn.Module:
    """WaveNet's gates: nothing reads the residual of the last block."""

    def block(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = torch.tanh(m.f(x)) * torch.sigmoid(m.g(x))
        return x + m.residual(inside), m.skip(inside)

    def whole(m: nn.Module, x: Tensor) -> Tensor:
        x, first = m.one(m.start(x))
        return m.head(torch.relu(first + m.two(x)[1]).mean(-1))

    names = ("f", "g", "residual", "skip")
    one, two = (Run(block, **{name: nn.Conv1d(16, 16, 3, padding=1) for name in names}) for _ in range(2))
    return Run(whole, start=nn.Conv1d(1, 16, 1), one=one, two=two, head=nn.Linear(16, 3))


def watched(m: nn.Module, x: Tensor) -> Tensor:
    """A layer runs beside, and is not read."""
    m.seen = m.aside(x)
    return m.b(x)


def without_gradient(m: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = torch.relu(m.a(x))
    return m.b(x)


def chosen(m: nn.Module, x: Tensor) -> Tensor:
    """One of two experts, by the larger number: that has no gradient."""
    which = functional.one_hot(m.gate(x.mean((2, 3))).argmax(1), 2).float()[..., None, None, None]
    return m.a(x) * which[:, 0] + m.b(x) * which[:, 1]


def there_and_back(m: nn.Module, x: Tensor) -> Tensor:
    """One weight to encode and, turned round, to decode; of a Linear and of a convolution."""
    flat, picture = x.flatten(1), torch.relu(m.b(x))
    one = functional.linear(torch.relu(m.a(flat)), m.a.weight.t()) - flat
    other = functional.conv_transpose2d(picture, m.b.weight, padding=1) - x
    return m.head(torch.cat([one, other.flatten(1)], 1))
