"""Patch ExecuTorch's lowering to XNNPACK while it runs (1.4.1)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def _short_keys() -> Iterator[None]:
    """Shorten the keys of constants from 64 characters to 32: a file holds each key twice, 27 kB of a MobileNetV3."""
    from hashlib import blake2b
    from types import SimpleNamespace
    from unittest.mock import patch

    from executorch.backends.xnnpack.operators import node_visitor

    with patch.object(node_visitor, "hashlib", SimpleNamespace(sha256=partial(blake2b, digest_size=16))):
        yield


@contextmanager
def _own_layouts() -> Iterator[None]:
    """Give a tensor in another memory order only to the convolution that needs it. 1.4.1 gives it to all readers of the
    int8 tensor, some of them outside XNNPACK, and the file fails when it runs, or cannot be written.
    """
    from unittest.mock import patch

    from executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass import ChannelsLastTaggedReshapePass

    insert = ChannelsLastTaggedReshapePass.insert_copy_q_dq

    def inserted(self: Any, graph_module: Any, before: Any, after: Any, *rest: Any, **named: Any) -> None:
        copy = named.get("copy", rest[0] if rest else None)
        others = [user for user in before.users if user not in (after, copy)]
        if others:
            with graph_module.graph.inserting_after(before):
                own = graph_module.graph.node_copy(before)
            for user in others:
                user.replace_input_with(before, own)
        insert(self, graph_module, before, after, *rest, **named)

    with patch.object(ChannelsLastTaggedReshapePass, "insert_copy_q_dq", inserted):
        yield


BILINEAR, ATTENTION = "upsample_bilinear2d", "softmax"  # operators that the two passes look for


@contextmanager
def _skip_idle_passes() -> Iterator[None]:
    """Skip two passes if the graph has no operator that they look for, bilinear or softmax: both export their patterns
    first (1.4.1), which takes as long as lowering a small model.
    """
    from unittest.mock import patch

    from executorch.backends.xnnpack._passes.convert_to_sdpa import ConvertToSDPAPass
    from executorch.backends.xnnpack._passes.convert_to_upsample_bilinear2d import ConvertToUpsampleBilinear2d
    from torch.fx.passes.infra.pass_base import PassResult

    def only_with(operator: str, call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def called(self: Any, graph_module: Any) -> Any:
            if any(operator in str(node.target) for node in graph_module.graph.nodes):
                return call(self, graph_module)
            return PassResult(graph_module, False)

        return called

    with (
        patch.object(ConvertToUpsampleBilinear2d, "call", only_with(BILINEAR, ConvertToUpsampleBilinear2d.call)),
        patch.object(ConvertToSDPAPass, "call", only_with(ATTENTION, ConvertToSDPAPass.call)),
    ):
        yield


@contextmanager
def patched() -> Iterator[None]:
    """Patch the faults of ExecuTorch's lowering to XNNPACK."""
    with _short_keys(), _own_layouts(), _skip_idle_passes():
        yield
