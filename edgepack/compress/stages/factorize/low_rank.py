"""Compute how much of a layer's output each rank keeps, and the two thin layers for a rank.

A layer is split in one of two schemes, each a matrix of its weight [n, c, k, l] cut at a rank r:

    channel   [n, c*k*l]     k x l to r channels, then 1 x 1 to n; a Linear and a 1 x 1 convolution have this one alone
    spatial   [n*l, c*k]     k x 1 to r channels, then 1 x l to n

An embedding [tokens, n] is the Linear [n, tokens] of tokens that are one-hot. Energy is the sum of the squared outputs,
without bias, over calibration samples: a token counts as often as it is read, and those of padding do not.
Source: channel: X. Zhang et al., Accelerating Very Deep Convolutional Networks, TPAMI 2016, arXiv 1505.06798, which for
a Linear is X. Wang et al., SVD-LLM, ICLR 2025, arXiv 2403.07378; spatial: M. Jaderberg et al., Speeding up
Convolutional Neural Networks with Low Rank Expansions, BMVC 2014, arXiv 1405.3866, scheme 2.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgepack.core.errors import StageError
from edgepack.data.splits import Split
from edgepack.models.structure.encoder import TextEncoder
from edgepack.models.structure.surgery import is_plain

SplitScheme = Literal["channel", "spatial"]

_BATCH = 32
_ROWS = 16_384  # patches of one layer, over all samples; positions in larger images are sampled
_CHUNK = 2**23  # numbers in one unfolded piece of a batch
_MEMORY = 2**29  # bytes of second moments held at once
_LIFT = 1e-3  # of the mean input power: weight of directions that calibration did not see
_NOTHING = 1e-12  # of the largest eigenvalue: anything below it is rounding


def schemes(layer: nn.Module) -> tuple[SplitScheme, ...]:
    """Return the schemes that differ for this layer: with a k x 1 kernel both are the same.

    A subclass that pads in its own way, as timm's Conv2dSame does, has the first alone.
    """
    both = isinstance(layer, nn.Conv2d) and layer.kernel_size[1] > 1 and is_plain(layer)
    return ("channel", "spatial") if both else ("channel",)


def shape(layer: nn.Module, scheme: SplitScheme) -> tuple[int, int]:
    """Return rows and columns of the matrix whose rank is cut."""
    outputs, inputs = _matrix(layer).shape
    if scheme == "channel":
        return outputs, inputs
    across = layer.kernel_size[1]
    return outputs * across, inputs // across


def break_even(layer: nn.Module, scheme: SplitScheme = "channel") -> float:
    """Return the rank at which the two thin layers have as many weights as the one: mn / (m + n) for a Linear."""
    return float(_matrix(layer).numel() / sum(shape(layer, scheme)))


class Curve(Protocol):
    """Energy per rank: rank r keeps at least the share `retained_energy[r - 1]` of the layer's energy."""

    @property
    def scheme(self) -> SplitScheme: ...

    @property
    def retained_energy(self) -> Tensor: ...

    def thin(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return the thin layers' weights, [rank, ...] and [outputs, rank, ...], with equal norms in every channel."""

    def exactly(self, rank: int) -> float:
        """Return the exact share kept, where `retained_energy` is a bound."""


def needed(curve: Curve, energy: float) -> int:
    """Return the lowest rank that keeps this energy; if none in the curve does, one more than its length."""
    return int((curve.retained_energy < energy).sum()) + 1


@dataclass(frozen=True, kw_only=True)
class Channel:
    """Splits by the eigenvectors U of the outputs' second moment, largest first: the weight W becomes U (U^T W)."""

    retained_energy: Tensor
    basis: Tensor
    weight: Tensor
    scheme: SplitScheme = "channel"

    @classmethod
    def of(cls, weight: Tensor, moment: Tensor, rows: int, most: int) -> "Channel":
        values, vectors = _largest(moment, min(max(rows, most), moment.shape[0]))
        retained = values.cumsum(0) / values.sum()
        return cls(retained_energy=retained, basis=vectors[:, :most], weight=weight)

    def thin(self, rank: int) -> tuple[Tensor, Tensor]:
        basis = self.basis[:, :rank].to(self.weight.dtype)
        first, second = _balanced(basis.T @ self.weight.flatten(1), basis[:, :, None])
        return first.reshape(rank, *self.weight.shape[1:]), second.reshape(-1, rank, *[1] * (self.weight.dim() - 2))

    def exactly(self, rank: int) -> float:
        return float(self.retained_energy[rank - 1])


class Table(Channel):
    """Splits an embedding: the first thin layer is a table too, [tokens, rank]."""

    def thin(self, rank: int) -> tuple[Tensor, Tensor]:
        first, second = super().thin(rank)
        return first.T, second


@dataclass(frozen=True, kw_only=True)
class Spatial:
    """Takes vertical filters from the eigenvectors of the kernel columns' outputs, and fits horizontal ones to them.

    The horizontal filters are a least-squares fit to the layer's own outputs. The filters of a lower rank are the first
    ones of a higher rank, so one Cholesky factor gives the error at every rank.
    """

    retained_energy: Tensor
    filters: Tensor  # [rank, c*k]
    factor: Tensor  # Cholesky factor, [rank*l, rank*l], of the second moment of the filters' outputs
    answers: Tensor  # [n, rank*l]: the outputs in the factor's coordinates
    weight: Tensor
    lift: float
    energy: float
    scheme: SplitScheme = "spatial"

    @classmethod
    def of(cls, weight: Tensor, gram: Tensor, most: int) -> "Spatial":
        """Compute all ranks. `gram` is the second moment of the patches, [c*k*l, c*k*l]; it is changed in place."""
        across = weight.shape[-1]
        whole = weight.flatten(1).double()
        energy = float((whole @ gram).mul(whole).sum())
        lift = _LIFT * float(gram.diagonal().mean())
        gram.diagonal().add_(lift)
        filters = _vertical(whole, gram, across, most)
        seen = (filters @ gram.reshape(filters.shape[1], -1)).reshape(len(filters) * across, -1)  # [rank*l, c*k*l]
        moment = seen.reshape(*seen.shape[:1], -1, across).transpose(1, 2) @ filters.T  # [rank*l, l, rank]
        factor = _cholesky(moment.transpose(1, 2).reshape(len(seen), len(seen)))
        answers = torch.linalg.solve_triangular(factor, seen @ whole.T, upper=False).T
        explained = answers.square().sum(0).reshape(-1, across).sum(1).cumsum(0)
        missing = (whole @ gram).mul(whole).sum() - explained
        retained = (1 - missing / energy).cummax(0).values
        known = {"weight": weight, "lift": lift, "energy": energy}
        return cls(retained_energy=retained, filters=filters, factor=factor, answers=answers, **known)

    def thin(self, rank: int) -> tuple[Tensor, Tensor]:
        first, second = _balanced(self.filters[:rank], self._horizontal(rank))
        _, inputs, height, _ = self.weight.shape
        return first.reshape(rank, inputs, height, 1), second[:, :, None]

    def exactly(self, rank: int) -> float:
        """Correct the share for the lift, which raised the error by the lift times the weight's squared error."""
        made = torch.einsum("nrl,rp->npl", self._horizontal(rank), self.filters[:rank])
        off = self.weight.flatten(1).double() - made.flatten(1)
        return float(self.retained_energy[rank - 1]) + self.lift * float(off.square().sum()) / self.energy

    def _horizontal(self, rank: int) -> Tensor:
        across = self.weight.shape[-1]
        part, answers = self.factor[: rank * across, : rank * across], self.answers[:, : rank * across]
        return torch.linalg.solve_triangular(part, answers, upper=False, left=False).reshape(-1, rank, across)


def _vertical(whole: Tensor, gram: Tensor, across: int, most: int) -> Tensor:
    """Return the vertical filters, most important first, each scaled so that its output has a power of one."""
    tall = gram.shape[0] // across
    upright = torch.einsum("ajbj->ab", gram.reshape(tall, across, tall, across))
    columns = whole.reshape(-1, tall, across).transpose(1, 2).reshape(-1, tall)  # [n*l, c*k]
    values, vectors = _largest(columns @ upright @ columns.T, min(columns.shape))
    count = min(most, int((values > _NOTHING * values[0]).sum()))
    return (vectors[:, :count] / values[:count].sqrt()).T @ columns


def _largest(moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and eigenvectors of a second moment of at most `rank` vectors, largest first.

    For a small `rank`, a random projection finds the space that they span, and the decomposition is done there.
    """
    if rank < len(moment) // 2:
        random = torch.Generator().manual_seed(0)
        inside = torch.linalg.qr(moment @ torch.randn(len(moment), rank, dtype=moment.dtype, generator=random)).Q
        values, vectors = torch.linalg.eigh(inside.T @ moment @ inside)
        vectors = inside @ vectors
    else:
        values, vectors = torch.linalg.eigh(moment)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def _cholesky(moment: Tensor) -> Tensor:
    for power in range(-12, 1):
        factor, failed = torch.linalg.cholesky_ex(moment)
        if not failed:
            break
        moment.diagonal().add_(moment.diagonal().mean() * 10.0**power)
    return factor


def _balanced(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Scale [rank, inputs] and [outputs, rank, ...] to equal norms, which train and quantize best."""
    tiny = torch.finfo(first.dtype).tiny
    into, out = first.norm(dim=1).clamp(min=tiny), second.norm(dim=(0, 2)).clamp(min=tiny)
    scale = (out / into).sqrt()
    return first * scale[:, None], second / scale[None, :, None]


@dataclass
class _Moment:
    """Sums the outer products of vectors: of a layer's outputs, or of its patches."""

    layer: nn.Module
    of_patches: bool
    positions: int  # at most so many patches of one sample
    real: Tensor | None = None  # which tokens of the batch are not padding, [n, tokens]
    rows: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        for vectors in self._patches(inputs, outputs) if self.of_patches else [self._outputs(outputs)]:
            self.total = self.total.addmm_(vectors.T, vectors) if self.rows else vectors.T @ vectors
            self.rows += len(vectors)

    def _outputs(self, outputs: Tensor) -> Tensor:
        vectors = outputs.movedim(1, -1) if isinstance(self.layer, nn.Conv2d) else outputs
        if self.real is not None and vectors.shape[:-1] == self.real.shape:
            vectors = vectors[self.real]
        bias = getattr(self.layer, "bias", None)
        bias = 0 if bias is None else bias
        return (vectors - bias).reshape(-1, vectors.shape[-1]).double()

    def _patches(self, inputs: Tensor, outputs: Tensor) -> Iterator[Tensor]:
        layer, places = self.layer, outputs.shape[2] * outputs.shape[3]
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        chosen = torch.randperm(places, generator=torch.Generator().manual_seed(self.rows))[: self.positions].sort()[0]
        for piece in inputs.split(max(1, _CHUNK // (_matrix(layer).shape[1] * places))):
            padded = functional.pad(piece, layer._reversed_padding_repeated_twice, mode=mode)
            columns = functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)[:, :, chosen]
            yield columns.transpose(1, 2).reshape(-1, columns.shape[1]).double()


def curves(
    module: nn.Module, wanted: Mapping[str, tuple[SplitScheme, ...]], data: Split, samples: int, *, upto: float = 1.0
) -> dict[str, tuple[Curve, ...]]:
    """Return one curve per wanted scheme for each named layer; none for a layer whose outputs are all zero.

    Ranks go up to a share of break-even, for an embedding up to the full rank. Layers are measured in groups whose
    second moments fit into memory.
    """
    found: dict[str, tuple[Curve, ...]] = {}
    for group in _groups(module, wanted):
        moments = _collect(module, {name: wanted[name] for name in group}, data, samples)
        for name in group:
            found[name] = _curves(name, wanted[name], moments.pop(name), upto)
    return found


def _groups(module: nn.Module, wanted: Mapping[str, tuple[SplitScheme, ...]]) -> Iterator[list[str]]:
    group: list[str] = []
    held = 0
    for name in wanted:
        size = 8 * _matrix(module.get_submodule(name)).shape["spatial" in wanted[name]] ** 2
        if group and held + size > _MEMORY:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _collect(
    module: nn.Module, wanted: Mapping[str, tuple[SplitScheme, ...]], data: Split, samples: int
) -> dict[str, _Moment]:
    count = min(samples, len(data))
    moments, hooks = {}, []
    for name, chosen in wanted.items():
        layer = module.get_submodule(name)
        moments[name] = _Moment(layer, "spatial" in chosen, max(1, math.ceil(_ROWS / count)))
        hooks.append(layer.register_forward_hook(lambda _, i, o, moment=moments[name]: moment.add(i[0], o)))
    with torch.no_grad():
        for batch in data.first(count).batches(_BATCH):
            for moment in moments.values():
                moment.real = batch.inputs[1].bool() if isinstance(module, TextEncoder) else None
            module(*batch.inputs)
    for hook in hooks:
        hook.remove()
    return moments


def _curves(name: str, wanted: tuple[SplitScheme, ...], moment: _Moment, upto: float) -> tuple[Curve, ...]:
    layer, total = moment.layer, moment.total
    weight, kind = layer.weight.detach(), Channel
    if isinstance(layer, nn.Embedding):
        weight, kind, upto = weight.T, Table, max(1.0, upto)
    if not moment.rows:
        return ()
    if not total.isfinite().all():
        raise StageError(f"{name} outputs NaN or Inf", "the model diverged: train it again with a lower learning_rate")
    outputs = _through(weight, total) if moment.of_patches else total
    if float(outputs.diagonal().sum()) <= 0:
        return ()
    made: list[Curve] = []
    if "channel" in wanted:
        made.append(kind.of(weight, outputs, moment.rows, math.ceil(upto * break_even(layer))))
    if "spatial" in wanted:
        made.append(Spatial.of(weight, total, math.ceil(upto * break_even(layer, "spatial"))))
    return tuple(made)


def _through(weight: Tensor, moment: Tensor) -> Tensor:
    """Return the second moment of the outputs, given that of the patches."""
    whole = weight.flatten(1).double()
    return whole @ moment @ whole.T


def _matrix(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight.detach()
    return weight.T if isinstance(layer, nn.Embedding) else weight.flatten(1)
