"""The backends that ExecuTorch can hand a model to, and what each asks of this computer and of the runtime."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Backend:
    """`needs` is the delegate that a runtime must have to run the file; "" where every runtime will do.

    `lowering` is what mends the backend's own while a model is lowered: one model must give one file, and a small one.
    """

    needs: str
    source: str  # the lowering, inside the package executorch
    package: str  # what it needs besides
    partitioners: Callable[[], list[Any]]
    lowering: Callable[[], AbstractContextManager[None]] = nullcontext

    def unavailable(self) -> str:
        """Why nothing can be lowered to it here, or "". Looks for files only: importing the lowering imports torch."""
        found = find_spec("executorch")
        if found is None:
            return "executorch is not installed: pip install executorch"
        places = [Path(folder, self.source) for folder in found.submodule_search_locations or ()]
        if not any(place.exists() for place in places):
            return f"this executorch has no executorch/{self.source}: pip install --force-reinstall executorch"
        if self.package and find_spec(self.package) is None:
            return f"it needs the package {self.package}: pip install {self.package}"
        return ""


def _xnnpack() -> list[Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return [XnnpackPartitioner()]


@contextmanager
def light_tracing() -> Iterator[None]:
    """Lowering traces the graph again and again; its nodes keep the line of the model that they came with, and get
    neither a copy of their whole past each time nor the stack of the tracer; and torch's operators are listed once, not
    for every trace. Of an int8 ResNet-18 that is nearly a third of the time, and the file is the same.
    """
    import copy
    from types import SimpleNamespace
    from unittest.mock import patch

    from torch.export import decomp_utils, exported_program
    from torch.fx import config, traceback

    shared = SimpleNamespace(copy=copy.copy, deepcopy=list)  # of what a node came from, which nobody changes
    listed = cache(exported_program._collect_all_valid_cia_ops)  # "should never be modified", says torch
    with (
        patch.object(traceback, "copy", shared),
        patch.object(config, "do_not_emit_stack_traces", True),
        patch.object(exported_program, "_collect_all_valid_cia_ops", listed),
        patch.object(decomp_utils, "_collect_all_valid_cia_ops", listed),
    ):
        yield


@contextmanager
def _short_keys() -> Iterator[None]:
    """Constants under 32 letters each instead of 64: a file holds every key twice, which is 27 kB of a MobileNetV3."""
    from hashlib import blake2b
    from types import SimpleNamespace
    from unittest.mock import patch

    from executorch.backends.xnnpack.operators import node_visitor

    with patch.object(node_visitor, "hashlib", SimpleNamespace(sha256=partial(blake2b, digest_size=16))):
        yield


@contextmanager
def _own_layouts() -> Iterator[None]:
    """Where a convolution wants a tensor in another order, only it is given that (1.4.1 gives it to all that read the
    int8 tensor, among them what runs outside of XNNPACK, and the file fails as it runs or is not written at all).
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


BILINEAR, ATTENTION = "upsample_bilinear2d", "softmax"  # operators of what two passes look for


@contextmanager
def _skip_idle_passes() -> Iterator[None]:
    """Two passes export examples of what they look for before they look (1.4.1), which takes as long as lowering a
    small net: where nothing in a graph can be such an interpolation or attention, they are left out.
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
def _xnnpack_lowering() -> Iterator[None]:
    with _short_keys(), _own_layouts(), _skip_idle_passes():
        yield


def _vulkan() -> list[Any]:
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    return [VulkanPartitioner()]


def _coreml() -> list[Any]:
    """For iOS 17, macOS 14 and later: the first whose operators know int8."""
    import coremltools
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=coremltools.target.iOS17)
    return [CoreMLPartitioner(compile_specs=specs)]


@contextmanager
def _reproducible_packages() -> Iterator[None]:
    """Core ML's packages else hold random names, the date, and maps in any order."""
    from unittest.mock import patch

    from executorch.backends.apple.coreml import executorchcoreml

    pack = executorchcoreml.flatten_directory_contents

    def packed(folder: str) -> Any:
        _settle(Path(folder))
        return pack(folder)

    with patch.object(executorchcoreml, "flatten_directory_contents", packed):
        yield


def _settle(folder: Path) -> None:
    """Write a Core ML package anew with nothing in it that another export of the same model would write otherwise.

    An app finds what it compiled before by the identifier, so that is made of the content.
    """
    import json

    from coremltools.proto import Model_pb2

    [path] = folder.rglob("*.mlmodel")
    model = Model_pb2.Model()
    model.ParseFromString(path.read_bytes())
    model.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    path.write_bytes(model.SerializeToString(deterministic=True))
    items = folder / "model.mlpackage" / "Manifest.json"
    listed = json.loads(items.read_text())
    entries = sorted(listed["itemInfoEntries"].items(), key=lambda item: str(item[1]["path"]))
    names = {old: f"{i:08d}-0000-0000-0000-000000000000" for i, (old, _) in enumerate(entries)}
    listed["itemInfoEntries"] = {names[old]: facts for old, facts in entries}
    listed["rootModelIdentifier"] = names[listed["rootModelIdentifier"]]
    items.write_text(json.dumps(listed, indent=4))
    facts = folder / "metadata.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "identifier": f"edgepack_{_content(folder)}"}))


def _content(folder: Path) -> str:
    """The hash of what the model computes: its operators and its weights."""
    from hashlib import sha256

    found = sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".mlmodel", ".bin"):
            found.update(path.read_bytes())
    return found.hexdigest()[:32]


BACKENDS = {
    # Every build of the runtime that the worker knows has XNNPACK: nobody need be asked.
    "xnnpack": Backend(
        needs="", source="backends/xnnpack", package="", partitioners=_xnnpack, lowering=_xnnpack_lowering
    ),
    "coreml": Backend(
        needs="CoreMLBackend",
        source="backends/apple/coreml",
        package="coremltools",
        partitioners=_coreml,
        lowering=_reproducible_packages,
    ),
    "vulkan": Backend(needs="VulkanBackend", source="backends/vulkan", package="", partitioners=_vulkan),
    "portable": Backend(needs="", source="exir", package="", partitioners=list),
}
