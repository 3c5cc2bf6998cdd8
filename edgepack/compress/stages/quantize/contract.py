"""Define what a quantizer must and may provide, and the scheme that it gets."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.config.plugins import DEFAULT_QUANTIZER

if TYPE_CHECKING:
    from torch import fx


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What becomes int8, and how. Weights get this many bits; embedding tables have 8, for nothing multiplies them.

    The range of an activation is `dynamic`, measured in each inference, or else fixed by calibration. Between the
    layers of an encoder everything stays float: one range for the residuals would round most of them away, and one for
    the scores of attention would have to hold the mask. `quantizer` is the name of the plugin that annotates the graph.
    """

    quantizer: str = DEFAULT_QUANTIZER
    bits: int = 8
    dynamic: bool = False
    linear_only: bool = False


class Quantizer(Protocol):
    """Says which tensors become int8 and where their ranges come from. Stands in compress/stages/quantize/quantizers/.

    An exporter names the quantizer that its files want. What has no default below must be defined; what has one may be
    left out. Capture, calibration, training and conversion are shared; they take an observer of the graph that is
    calibrated and one of the graph that is trained for the same where they have the same name. A whole quantizer:

        "ExecuTorch's quantizer for Vulkan."

        VERSION = 1


        def quantizer(scheme, *, training):
            from executorch.backends.vulkan.quantizer.vulkan_quantizer import (
                VulkanQuantizer,
                get_symmetric_quantization_config,
            )

            config = get_symmetric_quantization_config(is_dynamic=scheme.dynamic, weight_bits=8)
            return VulkanQuantizer().set_global(config)
    """

    VERSION: int  # to raise when the same graph would be quantized otherwise

    LIBRARIES: tuple[str, ...] = ()  # packages besides torch and torchao whose version changes what it does

    @abstractmethod
    def quantizer(self, scheme: Scheme, *, training: bool) -> Any:
        """Make torchao's Quantizer for the PT2E flow, with fake quantizers where the graph is trained.

        It leaves alone what has an annotation already: the layers that stay in fp32. Raises StageError for a scheme
        that it cannot do.
        """

    def keeps_range(self, operator: object) -> bool:
        """Whether the result of this operator has the range of what it reads, by one observer for both."""
        return False

    def finish(self, prepared: "fx.GraphModule", *, training: bool) -> None:
        """Change the graph with observers in place: undo what the annotation alone needed."""
