"""Graphics processors, through Vulkan."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DELEGATE = NEEDS = "VulkanBackend"
SOURCE = "backends/vulkan"
BUILD, LIBRARY = "-DEXECUTORCH_BUILD_VULKAN=ON", "vulkan_backend"


def partitioners() -> list[Any]:
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    return [VulkanPartitioner()]


@contextmanager
def lowering() -> Iterator[None]:
    """Trace the patterns that ExecuTorch fuses once a process: it registers the functions that do so without their
    caches (1.4.1), and tracing them twice for each file takes most of the time of a small model.
    """
    from unittest.mock import patch

    from executorch.backends.vulkan.patterns import fusable_patterns, rope, rope_hf

    with (
        patch.object(fusable_patterns["export_llama_rope"], "get_graphs_fn", rope.get_rope_graphs),
        patch.object(fusable_patterns["hf_rope"], "get_graphs_fn", rope_hf.get_hf_rope_graphs),
    ):
        yield
