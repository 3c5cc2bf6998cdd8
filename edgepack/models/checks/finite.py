"""Find where a model first outputs NaN or Inf."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import fx, nn

from edgepack.core.errors import StageError, listed
from edgepack.models.source_lines import of_node, part_of


def check_finite(module: nn.Module) -> None:
    """Raises StageError naming the weights that are not finite, and their layers.

    A buffer such as a mask may contain infinity.
    """
    buffers = {name for name, _ in module.named_buffers()}
    wrong = [
        (name, tensor)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if tensor.is_floating_point()
        and not bool((~tensor.isnan() if name in buffers and "running" not in name else tensor.isfinite()).all())
    ]
    if wrong:
        spoiled = listed([_spoiled(module, name, tensor) for name, tensor in wrong], 3)
        raise StageError(f"not every weight is a finite number afterwards: {spoiled}", NOT_FINITE)


def _spoiled(module: nn.Module, name: str, tensor: torch.Tensor) -> str:
    """
    "features.3.conv.weight" of a Conv2d (12 of 864)
    """
    number = int((~tensor.isfinite()).sum())
    if isinstance(module, fx.GraphModule):
        part = next((_used(node) for node in module.graph.nodes if node.target == name), "")
    else:
        part = f" of a {type(module.get_submodule(name.rpartition('.')[0])).__name__}"
    return f"'{name}'{part} ({number} of {tensor.numel()})"


def _used(node: fx.Node) -> str:
    """Return the first module that uses a value of the graph; quantization nodes lie in none."""
    while not (part := part_of(node)) and node.users:
        node = next(iter(node.users))
    return f" in '{part}'" if part else ""


NOT_FINITE = "fix the checkpoint, or the code that makes the weights; after a training stage use a lower learning_rate"


def first_not_finite(module: nn.Module, inputs: Sequence[torch.Tensor]) -> str:
    """Name the first module with non-finite output: ", first at '1', a BatchNorm2d whose running_var is below 0"."""
    found: list[str] = []
    with torch.no_grad(), suppress(Exception):  # outputs before an error still count
        if isinstance(module, fx.GraphModule):
            _Nodes(module, found).run(*inputs)
        else:
            with _noting(module, found):
                module(*inputs)
    return f", first at {found[0]}" if found and found[0] else ""


class _Nodes(fx.Interpreter):  # type: ignore[misc]
    """Records the operators whose outputs are not finite."""

    def __init__(self, module: fx.GraphModule, found: list[str]) -> None:
        super().__init__(module)
        self.found = found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and _is_not_finite(value):
            self.found.append(of_node(n))
        return value


@contextmanager
def _noting(module: nn.Module, found: list[str]) -> Iterator[None]:
    """Record the modules whose outputs are not finite, inner ones before outer ones."""

    def noted(name: str) -> Callable[..., None]:
        def note(part: nn.Module, given: Any, output: Any) -> None:
            if _is_not_finite(output):
                found.append(f"'{name}', a {type(part).__name__}{_negative(part)}" if name else "")

        return note

    hooks = [part.register_forward_hook(noted(name)) for name, part in module.named_modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(value.isfinite().all())


def _negative(part: nn.Module) -> str:
    variance = getattr(part, "running_var", None)
    wrong = int((variance < 0).sum()) if isinstance(variance, torch.Tensor) else 0
    return f" whose running_var is below 0 ({wrong} of {len(variance)})" if variance is not None and wrong else ""
