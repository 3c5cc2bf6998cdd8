"""Where the channels of every layer go in a model, by running it once and following each number of each tensor.

Every output channel of a layer has a number, its label; beside each tensor of the forward runs a tensor of the same
shape that holds the label of each of its elements. What moves elements about (views, splits, shuffles, concatenations)
moves the labels alike; where two labels meet, as in a sum, the two channels can only go together; a layer that takes
channels in has its own labels for its inputs, which are joined with those that arrive. Where channels cannot go, as
what a GRU reads or the model's answer, a label is held, with the reason.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from traceback import FrameSummary
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from edgepack.models.source_lines import place
from edgepack.models.structure.flow import recurrent

FIXED, FREE = 0, -1  # labels of channels that cannot be removed, and of constants, which fit to any channel
OUTPUT = "it gives the model's output"  # a reason


@dataclass(frozen=True)
class Slot:
    """One dimension of a layer's tensor; its places have the labels from `start` on.

    Without a tensor it is the width attribute of a norm without weights.
    """

    layer: str
    tensor: str
    dimension: int
    start: int
    size: int


def long_dimension(parameter: Tensor) -> int | None:
    """Return the only dimension larger than one; None if there is none, or several."""
    long = [at for at, size in enumerate(parameter.shape) if size > 1]
    return long[0] if len(long) == 1 else None


def is_depthwise(layer: nn.Module) -> bool:
    """Return whether every channel has its own filters: one, or several (a channel multiplier)."""
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels


def makes_channels(layer: nn.Module, slot: Slot) -> bool:
    """Return whether the places of a slot are the outputs of a layer that mixes its inputs."""
    if isinstance(layer, nn.RNNBase):
        return recurrent.makes_units(slot.tensor, slot.dimension)
    if slot.tensor != "weight" or not isinstance(layer, _ConvNd | nn.Linear) or is_depthwise(layer):
        return False
    return slot.dimension == int(getattr(layer, "transposed", False))


def takes_channels(layer: nn.Module, slot: Slot) -> bool:
    if isinstance(layer, nn.RNNBase):
        return recurrent.takes_channels(slot.tensor, slot.dimension)
    if slot.tensor != "weight" or not isinstance(layer, _ConvNd | nn.Linear) or is_depthwise(layer):
        return False
    return slot.dimension != int(getattr(layer, "transposed", False))


class Flow(TorchDispatchMode):  # type: ignore[misc]
    """Run a model in this mode; then `canonical` says which labels belong together, and `held` which cannot be removed.

    Where a view cuts channels into parts, code mostly fixes the number of parts, so that each part must lose the same
    places; with `trailing` it fixes their size. `rule_of` gives the rule for an operator's name (rules.py).
    """

    def __init__(self, module: nn.Module, rule_of: "Callable[[str], Rule]", *, trailing: bool = False) -> None:
        super().__init__()
        self.module, self.rule_of, self.trailing = module, rule_of, trailing
        self.has_cut = False  # whether a view has cut channels into parts
        self.names = {id(part): name for name, part in module.named_modules()}
        self.tensors = {id(each): f"buffer '{name}'" for name, each in module.named_buffers()}
        self.tensors |= {id(each): f"parameter '{name}'" for name, each in module.named_parameters()}
        self.ran: set[int] = set()  # layers that made channels, by the first of their labels
        self.read: set[int] = set()  # inputs of weights that were read, by the first of their labels
        self.slots: list[Slot] = []
        self.held: dict[int, str] = {}
        self.suspects: dict[int, list[str]] = {}  # label -> possible reasons if its removal turns out wrong
        self.parents = torch.zeros(1, dtype=torch.int64)  # for each label, one that represents all that belong together
        self.labels = WeakTensorKeyDictionary()  # tensor -> the labels of its elements
        self.matrices = WeakTensorKeyDictionary()  # weight -> the labels of each of its dimensions
        self.given: list[tuple[nn.Module, Tensor]] = []  # inputs of norms, not yet followed
        self.widths: dict[nn.Module, tuple[Tensor, int]] = {}  # width labels of norms, and the dimension they refer to
        self.units: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # labels of what recurrent layers take, and of units
        self.inside = 0  # recurrent layers that run, whose operators are not followed
        for name, layer in module.named_modules():
            self._register(name, layer)

    # Labels and what belongs together

    def fresh(self, number: int) -> Tensor:
        start = len(self.parents)
        self.parents = torch.cat([self.parents, torch.arange(start, start + number)])
        return torch.arange(start, start + number, dtype=torch.float32)

    def hold(self, labels: Tensor, why: str) -> None:
        """Mark labels that cannot be removed, with the reason."""
        for label in labels.unique().tolist():
            if label > 0:
                self.held.setdefault(int(label), why)

    def suspect(self, labels: Tensor, what: str) -> None:
        """Note a possible reason, in case a trial shows that these labels cannot be removed."""
        moving = labels[labels > 0].unique().tolist()
        reason = f"{what}{self.place()}" if moving else ""
        for label in moving:
            self.suspects.setdefault(int(label), []).append(reason)

    def join(self, one: Tensor, other: Tensor, why: str = "") -> None:
        """Join labels at the same position, which must be removed together; next to a fixed one none can be removed."""
        a, b = torch.broadcast_tensors(self.canonical(one), self.canonical(other))
        fixed = ((a == FIXED) & (b > 0)) | ((b == FIXED) & (a > 0))
        if bool(fixed.any()):
            self.hold(torch.cat([a[fixed], b[fixed]]), why or self.meets())
        unlike = (a != b) & (a > 0) & (b > 0)
        if bool(unlike.any()):
            pairs = (a[unlike].double() * _MANY + b[unlike].double()).unique().long()
            self._unite(pairs // _MANY, pairs % _MANY)

    def _unite(self, one: Tensor, other: Tensor) -> None:
        while bool(((a := self.parents[one]) != (b := self.parents[other])).any()):
            self.parents.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
            while bool(((above := self.parents[self.parents]) != self.parents).any()):
                self.parents = above

    def canonical(self, labels: Tensor) -> Tensor:
        """Replace each label by the one that represents all that belong together."""
        return torch.where(labels > 0, self.parents[labels.clamp(min=0).long()].float(), labels)

    # Slots of layers

    def _register(self, name: str, layer: nn.Module) -> None:
        own = {key: each for key, each in (*layer._parameters.items(), *layer._buffers.items()) if each is not None}
        if isinstance(layer, _ConvNd | nn.Linear | nn.Embedding):
            if "weight" in own and own["weight"] not in self.matrices:
                self._matrix(name, own["weight"], from_dimension=int(isinstance(layer, nn.Embedding)))
            self._vector(name, own, ("bias",))
        elif isinstance(layer, _NormBase | nn.GroupNorm) or (
            isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1
        ):
            self._vector(name, own, ("weight", "bias", "running_mean", "running_var"))
            self._width(name, layer, own)
        elif recurrent.is_resizable(layer):
            self._recurrent(name, layer, own)
        elif isinstance(layer, nn.PReLU) or not type(layer).__module__.startswith("torch.nn."):
            for key, parameter in layer._parameters.items():
                if parameter is not None and (long := long_dimension(parameter)) is not None:
                    self._bare(name, key, parameter, long)

    def _matrix(self, name: str, weight: Tensor, from_dimension: int) -> None:
        found: list[Tensor | None] = [None] * weight.dim()
        for dimension in range(from_dimension, 2):
            found[dimension] = self._slot(name, "weight", dimension, weight.shape[dimension])
        self.matrices[weight] = tuple(found)

    def _bare(self, name: str, key: str, parameter: Tensor, dimension: int) -> None:
        """Register a parameter of a model's own code, or of PReLU: a vector with one number per channel."""
        if parameter not in self.labels:
            labels = self._slot(name, key, dimension, parameter.numel())
            self.give(parameter, labels.reshape(parameter.shape))

    def _vector(self, name: str, own: dict[str, Tensor], tensors: Iterable[str]) -> None:
        for key in tensors:
            if key in own and own[key] not in self.labels:
                self.labels[own[key]] = self._slot(name, key, 0, len(own[key]))

    def _width(self, name: str, layer: nn.Module, own: dict[str, Tensor]) -> None:
        """Register the width of a norm: that of its tensors, or without any that of its input channels."""
        width = getattr(layer, "num_features", None) or getattr(layer, "num_channels", None)
        labels = self._slot(name, "", 0, width or layer.normalized_shape[0])
        if isinstance(layer, nn.GroupNorm):
            self.alike(labels, 0, width // layer.num_groups)
        if tensors := [self.labels[each] for each in own.values() if each in self.labels]:
            self.join(labels, tensors[0])
        else:
            self.widths[layer] = (labels, -1 if isinstance(layer, nn.LayerNorm) else 1)

    def _recurrent(self, name: str, layer: Any, own: dict[str, Tensor]) -> None:
        """Register an LSTM or GRU. A unit is a row in each gate of both weights and biases, and a column of what it
        remembers; torch has one hidden size for both directions and all layers, which lose the same units.
        """
        takes, units = self.fresh(layer.input_size), self.fresh(layer.hidden_size)
        for tensors in recurrent.parameters(layer):
            for kind, key in tensors.items():
                rows = self._slot(name, key, 0, len(own[key]))
                self.join(rows, units.repeat(len(rows) // layer.hidden_size))
                if kind.startswith("weight"):
                    columns = self._slot(name, key, 1, own[key].shape[1])
                    inner = kind == "weight_hh" or not key.removesuffix("_reverse").endswith("_l0")
                    self.join(columns, units.repeat(len(columns) // layer.hidden_size) if inner else takes)
        self.units[layer] = takes, units

    def _slot(self, layer: str, tensor: str, dimension: int, size: int) -> Tensor:
        self.slots.append(Slot(layer, tensor, dimension, len(self.parents), size))
        return self.fresh(size)

    @contextmanager
    def watching(self) -> Iterator["Flow"]:
        """Follow the calls of the model."""

        def tell(layer: nn.Module, given: tuple[Any, ...]) -> None:
            self.given += [(layer, each) for each in given[:1] if each.dim() > 1]  # followed with the next operator

        hooks = [norm.register_forward_pre_hook(tell) for norm in self.widths]
        hooks += [layer.register_forward_pre_hook(self._enter) for layer in self.units]
        hooks += [layer.register_forward_hook(self._leave) for layer in self.units]
        try:
            with self:
                yield self
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, layer: nn.Module, given: tuple[Any, ...]) -> None:
        with _disable_current_modes():
            self._follow_norms()
            series, *states = given
            takes, units = self.units[layer]
            for each in tree_leaves(states):
                if isinstance(each, Tensor):
                    self.takes(self.of(each), each.dim() - 1, units)
            if isinstance(series, Tensor):
                self.takes(self.of(series), series.dim() - 1, takes)
            else:
                for each in (each for each in tree_leaves(series) if isinstance(each, Tensor)):
                    self.hold(self.canonical(self.of(each)), self.meets("read as a packed sequence"))
        self.inside += 1

    def _leave(self, layer: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
        self.inside -= 1
        with _disable_current_modes():
            units = self.units[layer][1]
            for slot in self.slots:
                if slot.layer == self.names[id(layer)] and makes_channels(layer, slot):
                    self.ran.add(slot.start)
            for each in tree_leaves(answer):
                if isinstance(each, Tensor) and each.is_floating_point():
                    self.give(each, units.repeat(each.shape[-1] // len(units)))

    # Labels of operators

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.inside:
            return func(*args, **(kwargs or {}))
        self._follow_norms()
        answer = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}
        follow = self.rule_of(name if name.endswith("__") else name.removesuffix("_"))
        follow(self, func, {**named, **(kwargs or {})}, answer)
        return answer

    def _follow_norms(self) -> None:
        while self.given:
            norm, tensor = self.given.pop()
            labels, dimension = self.widths[norm]
            self.takes(self.of(tensor), dimension % tensor.dim(), labels)

    def of(self, tensor: Tensor) -> Tensor:
        known = self.labels.get(tensor)
        if known is None:
            known = self.give(tensor, torch.tensor(float(FIXED)))
            if tensor in self.matrices:
                self._holds_matrix(tensor)
        return known

    def give(self, tensor: Tensor, labels: Tensor) -> Tensor:
        """Store labels with the tensor's own strides, so that a view of it is a view of its labels too."""
        known = self.labels.get(tensor)
        if known is None or known.shape != tensor.shape:
            known = torch.empty_like(tensor, dtype=torch.float32)
            self.labels[tensor] = known
        known.copy_(labels.expand(tensor.shape))
        return known

    def _holds_matrix(self, weight: Tensor) -> None:
        for labels in self.matrices[weight]:
            if labels is not None:
                self.hold(self.canonical(labels), f"its weight is read by other code{self.place()}")

    def takes(self, given: Tensor, dimension: int, labels: Tensor) -> None:
        """Join labels with the places of a dimension, whatever the other indices are."""
        others = [at for at in range(given.dim()) if at != dimension]
        alike = one_label(given, others, keeps=False)
        if alike is not None and bool((alike != FREE).all()):
            self.join(alike, labels)
        else:
            self.join(given, labels.reshape([-1 if at == dimension else 1 for at in range(given.dim())]))

    def alike(self, labels: Tensor, dimension: int, size: int) -> None:
        """Require that all parts of this size along a dimension lose the same places."""
        first = labels.narrow(dimension, 0, size).repeat(
            [labels.shape[at] // size if at == dimension else 1 for at in range(labels.dim())]
        )
        self.join(labels, first)

    def reads(self, weight: Tensor) -> None:
        """Note that an operator reads a layer's weight: the layer itself, or the model's own code."""
        layer = self.module.get_submodule(self.part())
        if id(weight) in self.tensors and all(weight is not own for own in layer._parameters.values()):
            for labels in self.matrices[weight]:
                if labels is not None:
                    self.suspect(labels, "its weight is read by other code")

    def meets(self, what: str = "") -> str:
        part = self.part()
        if self.foreign(part):
            return f"it feeds the {type(self.module.get_submodule(part)).__name__} '{part}', which cannot be resized"
        return f"its channels are {what or 'combined with numbers of a fixed width'}{self.place()}"

    def part(self) -> str:
        """Return the innermost module that is running."""
        names = (self.names.get(id(frame.f_locals.get("self"))) for frame in self._frames())
        return next((name for name in names if name is not None), "")

    def place(self) -> str:
        frames = [FrameSummary(f.f_code.co_filename, f.f_lineno, f.f_code.co_name) for f in self._frames()]
        where = place(self.part(), frames[::-1])
        return f" at {where}" if where else ""

    def _frames(self) -> list[FrameType]:
        """Return the frames from the running operator out to the model's forward."""
        frames, frame = [], sys._getframe()
        while frame := frame.f_back:  # type: ignore[assignment]
            frames.append(frame)
        inside = [at for at, each in enumerate(frames) if each.f_locals.get("self") is self.module]
        return frames[: inside[-1] + 1] if inside else []

    def foreign(self, part: str) -> bool:
        """Return whether a layer with weights is running that cannot be resized."""
        known = _ConvNd | nn.Linear | nn.Embedding | _NormBase | nn.GroupNorm | nn.LayerNorm | nn.PReLU
        layer = self.module.get_submodule(part)
        resizable = isinstance(layer, known) or recurrent.is_resizable(layer)
        return bool(part) and not resizable and bool([*layer.parameters(recurse=False)])


# What an operator does with labels: gets the flow, the operator, its arguments by name and its result.
Rule = Callable[[Flow, Any, dict[str, Any], Any], None]
_MANY = 2**24  # more than the number of labels, and exact in float32


def varying(labels: Tensor) -> list[int]:
    """Return the dimensions along which labels differ."""
    return [at for at in range(labels.dim()) if labels.shape[at] > 1 and one_label(labels, [at], True) is None]


def one_label(labels: Tensor, over: Sequence[int], keeps: bool) -> Tensor | None:
    """Return the common label along these dimensions; None where they differ."""
    least = torch.where(labels == FREE, float("inf"), labels).amin(over, keepdim=keeps)
    most = labels.amax(over, keepdim=keeps)
    return None if bool(((least != most) & (most != FREE)).any()) else most
