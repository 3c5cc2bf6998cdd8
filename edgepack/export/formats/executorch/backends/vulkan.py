"""Graphics processors, through Vulkan."""

from typing import Any

DELEGATE = NEEDS = "VulkanBackend"
SOURCE = "backends/vulkan"
BUILD, LIBRARY = "-DEXECUTORCH_BUILD_VULKAN=ON", "vulkan_backend"


def partitioners() -> list[Any]:
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    return [VulkanPartitioner()]
