"""Which layer a stored tensor is of.

    names = named(candidate)
    names.of_name("layer1.0.conv1.weight")      # "layer1.0.conv1": a layer of the candidate
    names.of(array)                             # by its numbers, in whatever order a format keeps them

Formats lay tensors out anew and rename them, yet keep their numbers; only a folded batch norm scales the rows of a
convolution. What is the same in several layers, such as biases of zero, is told as being of several.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import fx, nn

from edgepack.export.packing import Array, comparable
from edgepack.models.structure.decoder import is_decoder
from edgepack.models.structure.fx_graph import tensor_of
from edgepack.records.file_contents import OTHER, SEVERAL

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate

_WRAPPER = "model"  # the module that Candidate.program puts around a bare Sequential, and generation around a decoder
_PARALLEL = 0.9999  # cosine above which two rows count as scaled copies


class Names:
    """The layers of a model and the tensors of each, as (layer, array) pairs.

    `wrapper` stands before every name in a file, as `Candidate.program` puts it there; it is not part of the model's
    names.
    """

    def __init__(self, tensors: Iterable[tuple[str, Array]], wrapper: str = "") -> None:
        self.wrapper = wrapper
        self._same_kind: defaultdict[tuple[str, int], list[tuple[str, Array]]] = defaultdict(list)
        self._prints: dict[tuple[str, int], defaultdict[bytes, set[str]]] = {}
        for layer, stored in tensors:
            array = comparable(stored)
            self._same_kind[_kind(array)].append((layer, array))
        self.layers = {layer for pairs in self._same_kind.values() for layer, _ in pairs}

    def of(self, array: Array) -> str:
        """Return the layer with a tensor of the same numbers, in any order."""
        array = comparable(array)
        kind = _kind(array)
        if kind not in self._prints:  # computed on demand: most formats keep most names
            self._prints[kind] = defaultdict(set)
            for layer, known in self._same_kind.get(kind, ()):
                self._prints[kind][_print(known)].add(layer)
        return _only(self._prints[kind].get(_print(array), set()))

    def of_scaled(self, array: Array) -> str:
        """Return the layer whose float weight [outputs, ...] has rows parallel to those of `array`."""
        known = self._same_kind.get(_kind(array), ())
        return _only({layer for layer, weight in known if weight.ndim > 1 and _parallel(weight, array)})

    def of_name(self, name: str) -> str:
        """Return the innermost layer that a name begins with: for "conv1.weight_bias" conv1."""
        parts = name.removeprefix(f"{self.wrapper}.").split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((prefix for prefix in prefixes if prefix in self.layers), OTHER)


def _kind(array: Array) -> tuple[str, int]:
    return array.dtype.str, array.size


def _print(array: Array) -> bytes:
    # Bytes are counted by the stable one, where the other would compare millions of equal ones.
    of_bytes = array.dtype.itemsize == 1
    ordered = numpy.sort(array, axis=None, kind="stable") if of_bytes else numpy.sort(array, axis=None)
    return hashlib.sha256(ordered.tobytes()).digest()


def _only(layers: set[str]) -> str:
    return next(iter(layers)) if len(layers) == 1 else SEVERAL if layers else OTHER


def _parallel(weight: Array, scaled: Array) -> bool:
    if len(weight) != len(scaled):
        return False
    rows, others = (array.reshape(len(array), -1).astype(numpy.float64) for array in (weight, scaled))
    lengths = numpy.linalg.norm(rows, axis=1) * numpy.linalg.norm(others, axis=1)
    return bool((numpy.abs((rows * others).sum(1)) >= _PARALLEL * lengths).all() and lengths.any())


def named(candidate: "Candidate") -> Names:
    """Return the layers of a candidate by the names in the user's model, also for a quantized one."""
    module = candidate.module
    decodes = is_decoder(module)  # and so is a part of what generates
    if candidate.form == "eager":
        return Names(_of_module(module), _WRAPPER if decodes or isinstance(module, nn.Sequential) else "")
    return Names(_of_graph(module), _WRAPPER if decodes or any(map(_is_wrapped, module.graph.nodes)) else "")


def _of_module(module: nn.Module) -> Iterator[tuple[str, Array]]:
    for name, tensor in module.state_dict().items():
        layer, _, own = name.rpartition(".")
        yield layer or own, tensor.detach().cpu().numpy()


def _of_graph(module: fx.GraphModule) -> Iterator[tuple[str, Array]]:
    """Yield each tensor with every operator that reads it, also through dequantization."""
    for node in module.graph.nodes:
        if node.op != "call_function" or _rounds(node):
            continue
        for source in _constants(node):
            if layer := layer_of(node) or _own_name(source):
                yield layer, tensor_of(module, source).cpu().numpy()


def _constants(node: fx.Node) -> Iterator[fx.Node]:
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            yield source
        elif _rounds(source) and source.args and source.args[0].op == "get_attr":
            yield from source.all_input_nodes


def _own_name(source: fx.Node) -> str:
    """Return the name of a tensor outside any layer; names beginning with "_" were made up by torch."""
    name = str(source.target)
    return "" if name.startswith("_") else name.rpartition(".")[0] or name


def _rounds(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "quantized_decomposed"


def layer_of(node: fx.Node) -> str:
    """Return the innermost module of a node; "" for the model itself."""
    names = [str(name) for name, _ in node.meta.get("nn_module_stack", {}).values()]
    name = names[-1] if names else ""
    return name.removeprefix(_WRAPPER).removeprefix(".") if _is_wrapped(node) else name


def _is_wrapped(node: fx.Node) -> bool:
    outermost = next(iter(node.meta.get("nn_module_stack", {}).values()), ("", ""))
    return outermost[0] == "" and "container.Sequential" in str(outermost[1])


def name_initializers(model: Any, names: Names) -> None:
    """Name the tensors of an ONNX graph after their layers, where torch's exporter only numbered them."""
    values = [value for value in model.graph.initializers.values() if names.of_name(value.name) == OTHER]
    taken = set(model.graph.initializers)
    for value, layer in zip(values, [_layer(value, names) for value in values], strict=True):
        if layer in names.layers:
            _rename(value, f"{layer}.{_role(value)}", taken)


def _layer(value: Any, names: Names) -> str:
    """Return the layer by the value's own numbers, else by those of what is read together with it."""
    found = [names.of(value.const_value.numpy())] if value.const_value.size > 1 else []
    if not {*found} & names.layers:
        found = [_known(beside, names) for user, _ in value.uses() for beside in _beside(user)]
    layers = {*found} & names.layers
    return layers.pop() if len(layers) == 1 and value.const_value.size > 1 else OTHER


def _known(value: Any, names: Names) -> str:
    by_name = names.of_name(value.name)
    return by_name if by_name != OTHER or value.const_value.size < 2 else names.of(value.const_value.numpy())


def _beside(node: Any) -> Iterator[Any]:
    """Yield the constants that a node reads; for a dequantized constant also those read by the users of its result."""
    constants = [value for value in node.inputs if value is not None and value.const_value is not None]
    yield from constants
    if len(constants) == len(node.inputs) and node.op_type == "DequantizeLinear":
        for user, _ in node.outputs[0].uses():
            for source in user.inputs:
                made = source.producer() if source is not None else None
                inputs = made.inputs if made is not None and made.op_type == "DequantizeLinear" else [source]
                yield from (value for value in inputs if value is not None and value.const_value is not None)


def _role(value: Any) -> str:
    user, place = next(iter(value.uses()))
    if user.op_type == "DequantizeLinear" and place:
        return ("scale", "zero_point")[place - 1]
    if len(value.const_value.shape) > 1 and value.const_value.dtype.name in ("INT8", "UINT8", "FLOAT"):
        return "weight" if place or user.op_type != "Gather" else "table"
    return {"Mul": "scale", "Add": "bias", "Conv": "bias", "Gemm": "bias"}.get(user.op_type, "constant")


def _rename(value: Any, wanted: str, taken: set[str]) -> None:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    value.name = value.const_value.name = name
