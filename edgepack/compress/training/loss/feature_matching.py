"""Match a student's features with its teacher's, in addition to outputs.

features    convolutional nets: where the teacher looks, at every resolution that both have
hidden      encoders: what the teacher knows of each token after its layers
attention   encoders: which tokens the teacher relates to each other
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from edgepack.core.errors import StageError
from edgepack.models.structure.encoder import blocks

Size = tuple[int, int]
Inputs = tuple[torch.Tensor, ...]
Parts = list[tuple[str, bool]]


class Transfer(Protocol):
    """Watches both models: call both on the same inputs, then `loss()`; `close()` when done.

    Made from a teacher, a student and some inputs; raises StageError when the two have no features of this kind to
    compare. `parameters` are trained with the student, and of no use afterwards.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, inputs: Inputs) -> None: ...
    def loss(self) -> torch.Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def close(self) -> None: ...


class FeatureLoss:
    """Several transfers at once, each by its name in TRANSFERS with its weight; those of weight 0 are left out."""

    def __init__(self, weights: Mapping[str, float], teacher: nn.Module, student: nn.Module, inputs: Inputs) -> None:
        self.parts: list[tuple[float, Transfer]] = []
        try:
            for name in (name for name, weight in weights.items() if weight):
                self.parts.append((weights[name], TRANSFERS[name](teacher, student, inputs)))
        except BaseException:
            self.close()  # remove the hooks already set
            raise

    def loss(self) -> torch.Tensor:
        return torch.stack([weight * part.loss() for weight, part in self.parts]).sum()

    def parameters(self) -> Iterator[nn.Parameter]:
        for _, part in self.parts:
            yield from part.parameters()

    def to(self, device: torch.device) -> None:
        """Move the parameters, once the two models have moved."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(device)

    def close(self) -> None:
        for _, part in self.parts:
            part.close()


class AttentionTransfer:
    """Compares sums of squares over channels, so teacher and student may differ in width and in architecture.

    Source: S. Zagoruyko and N. Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928.
    Raises StageError when the two have no resolution above one pixel in common.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, inputs: Inputs) -> None:
        if blocks(teacher) or blocks(student):
            raise StageError("a transformer encoder has no feature maps to compare", "use hidden, attention or both")
        known, own = _last_of_each_size(teacher, inputs), _last_of_each_size(student, inputs)
        common = [size for size in own if size in known and size != (1, 1)]
        if not common:
            raise StageError(
                "teacher and student have no feature maps of the same size to compare",
                "remove `features`, or choose a student with the teacher's resolutions",
            )
        self.seen: dict[tuple[str, Size], torch.Tensor] = {}
        self.sizes = common
        self.hooks = [
            layer.register_forward_hook(self._keep(role, size))
            for role, layers in (("teacher", known), ("student", own))
            for size, layer in layers.items()
            if size in common
        ]

    def loss(self) -> torch.Tensor:
        """Return the mean squared distance of the last normalised maps, summed over resolutions; each 0 to 4."""
        distances = [
            (_attention(self.seen["student", size]) - _attention(self.seen["teacher", size])).square().sum(1).mean()
            for size in self.sizes
        ]
        return torch.stack(distances).sum()

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    def close(self) -> None:
        _remove(self.hooks)

    def _keep(self, role: str, size: Size) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def keep(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            if tuple(output.shape[2:]) == size:  # a layer may be called at several resolutions
                self.seen[role, size] = output

        return keep


def _attention(features: torch.Tensor) -> torch.Tensor:
    """Map [n, c, h, w] to [n, h * w] of length one."""
    return functional.normalize(features.float().square().mean(1).flatten(1))


def _last_of_each_size(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[Size, nn.Module]:
    """Return the last layer that outputs feature maps of each height and width."""
    found: dict[Size, nn.Module] = {}

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.dim() == 4:
            found[int(output.shape[2]), int(output.shape[3])] = layer

    hooks = [layer.register_forward_hook(note) for layer in module.modules()]
    module.eval()
    with torch.no_grad():
        module(*inputs)
    _remove(hooks)
    return found


class _OfEncoders:
    """Watches the same parts of two encoders."""

    def __init__(
        self, teacher: nn.Module, student: nn.Module, inputs: Inputs, parts: Callable[[nn.Module], Parts]
    ) -> None:
        for role, module in (("teacher", teacher), ("student", student)):
            if not blocks(module):
                raise StageError(
                    f"the {role} is not a transformer encoder, so it has no hidden states or attention to compare",
                    "use features, which compares the feature maps of convolutional networks",
                )
        self.known, self.own = _Watched(teacher, parts(teacher)), _Watched(student, parts(student))
        self.widths = self.known.width(inputs), self.own.width(inputs)
        had, has = (watched.seen[0].shape[1] for watched in (self.known, self.own))
        if had != has:
            self.close()
            raise StageError(
                f"the teacher sees {had} tokens and the student {has}, so they have no hidden states or attention to "
                "compare",
                "use a student with the teacher's patches, or remove `hidden` and `attention`",
            )

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    def close(self) -> None:
        self.known.close()
        self.own.close()


class HiddenStates(_OfEncoders):
    """Compares the hidden states of each student layer with those of a teacher layer.

    The student's layers are mapped evenly to the teacher's, the last to the last, and the embeddings to the embeddings.
    Where the widths differ, a linear projection of the embeddings and one of all layers are learned. The loss is the
    mean squared error over real tokens, the mean of all pairs.
    Source: X. Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, EMNLP 2020, arXiv 1909.10351.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, inputs: Inputs) -> None:
        super().__init__(teacher, student, inputs, _states)
        known, own = self.widths
        self.project = nn.ModuleList([nn.Linear(own, known, bias=False) for _ in range(2)] if own != known else [])

    def loss(self) -> torch.Tensor:
        own, known = self.own.seen, self.known.seen
        last, known_last = len(own) - 1, len(known) - 1
        errors = [
            (self._projected(states, place) - known[place * known_last // last].float()).square().mean(-1)
            for place, states in enumerate(own)
        ]
        return _mean(torch.stack(errors).mean(0), self.own.mask)

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.project.parameters()

    def _projected(self, states: torch.Tensor, place: int) -> torch.Tensor:
        projected: torch.Tensor = self.project[min(place, 1)](states.float()) if self.project else states.float()
        return projected


_RELATED = 16  # smallest width of a relation head, as in the source


def relation_heads(known: int, own: int) -> int:
    """Return the largest number of relation heads that divides both widths and leaves each head wide enough.

    >>> relation_heads(768, 768), relation_heads(384, 96), relation_heads(32, 8)
    (48, 6, 1)
    """
    most = max(1, min(known, own) // _RELATED)
    return max(heads for heads in range(1, most + 1) if known % heads == own % heads == 0)


class Relations(_OfEncoders):
    """Compares the relations between tokens in the last layer, from its queries, its keys and its values.

    Queries (then keys, and values) are cut into the same number of relation heads in both models, whatever their
    attention heads, and multiplied with each other. The loss is the KL divergence of the student's relations from the
    teacher's, between real tokens, summed over the three.
    Source: W. Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation, ACL Findings 2021, arXiv
    2012.15828.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, inputs: Inputs) -> None:
        super().__init__(teacher, student, inputs, _projections)
        self.heads = relation_heads(*self.widths)

    def loss(self) -> torch.Tensor:
        return torch.stack(
            [self._divergence(own, known) for own, known in zip(self.own.seen, self.known.seen, strict=True)]
        ).sum()

    def _divergence(self, own: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Return the KL divergence of log relations [n, heads, tokens, tokens], averaged over heads and real tokens."""
        goal, relations = self._relations(known), self._relations(own)
        distance = functional.kl_div(relations, goal, reduction="none", log_target=True).sum(-1)
        return _mean(distance.mean(1), self.own.mask)

    def _relations(self, projected: torch.Tensor) -> torch.Tensor:
        parts = projected.float().unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = parts @ parts.transpose(-1, -2) / parts.shape[-1] ** 0.5
        return functional.log_softmax(scores.masked_fill(~self.own.mask[:, None, None, :], _NEVER), dim=-1)


_NEVER = -1e9  # finite: the divergence of two infinities is NaN

TRANSFERS: dict[str, type[Transfer]] = {
    "features": AttentionTransfer,
    "hidden": HiddenStates,
    "attention": Relations,
}


class _Watched:
    """Records the outputs of the named parts of an encoder in its last call, and which tokens were real.

    A part is the name of a module, and whether its output is recorded (True) or its input.
    """

    def __init__(self, module: nn.Module, parts: Parts) -> None:
        self.module, self.seen, self.padded = module, [torch.empty(0)] * len(parts), torch.empty(0, dtype=torch.bool)
        self.hooks = [module.register_forward_pre_hook(self._begin)]
        for place, (name, output) in enumerate(parts):
            self.hooks.append(module.get_submodule(name).register_forward_hook(self._keep(place, output)))

    def width(self, inputs: Inputs) -> int:
        """Return the width of the last part."""
        with torch.no_grad():
            self.module.eval()(*inputs)
        return int(self.seen[-1].shape[-1])

    def close(self) -> None:
        _remove(self.hooks)

    @property
    def mask(self) -> torch.Tensor:
        """Return which tokens were real, [n, tokens]: all of a picture."""
        first = self.seen[0]
        return self.padded if len(self.padded) else first.new_ones(first.shape[:2], dtype=torch.bool)

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if len(inputs) > 1:
            self.padded = inputs[1].bool()

    def _keep(self, place: int, output: bool) -> Callable[[nn.Module, Any, Any], None]:
        def keep(layer: nn.Module, inputs: Any, given: torch.Tensor) -> None:
            self.seen[place] = given if output else inputs[0]

        return keep


def _states(module: nn.Module) -> Parts:
    """Return the parts for the embeddings, which are the input of the first layer, and for the output of each layer."""
    row = [block.name for block in blocks(module)]
    return [(row[0], False), *((name, True) for name in row)]


def _projections(module: nn.Module) -> Parts:
    last = blocks(module)[-1]
    return [(name, True) for name in (last.query, last.key, last.value)]


def _mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean of the values [n, tokens] over real tokens."""
    return (values * mask).sum() / mask.sum()


def _remove(hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()
