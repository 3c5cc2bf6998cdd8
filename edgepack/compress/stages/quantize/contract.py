"""Define what a quantizer must and may provide, and the scheme that it gets."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgepack.config.plugins import DEFAULT_QUANTIZER

if TYPE_CHECKING:
    from torch import fx

GROUP_SIZES = (32, 64, 128, 256)  # XNNPACK takes multiples of 32, ONNX Runtime powers of 2


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What becomes int8 or less, and how. Weights have 8 bits, or 7; those of Linear layers may have 4. Embedding
    tables have 8, 4 or 2, whatever weights have, as nothing multiplies them. Of weights and tables with 4 bits or
    fewer, each `group` of neighbours in a row has a scale of its own.

    The range of an activation is measured in each inference if `dynamic`, else fixed by calibration. Between the layers
    of an encoder everything stays float: one range for the residuals would round most of them away, and one for the
    attention scores would have to include the mask. With `by_rows` each row, which is a token, has a dynamic range of
    its own: in a language model those of the first token may be hundreds of times as large as the others. `quantizer`
    is the name of the plugin that annotates the graph.
    """

    quantizer: str = DEFAULT_QUANTIZER
    bits: int = 8
    table_bits: int = 8
    group: int = 32
    dynamic: bool = False
    linear_only: bool = False
    by_rows: bool = False

    @property
    def int4(self) -> bool:
        return self.bits == 4


class Quantizer(Protocol):
    """Chooses which tensors become int8 and how their ranges are found. Stands in compress/stages/quantize/quantizers/.

    An exporter names the quantizer that its files need. What has no default below must be defined; what has one may be
    left out. Capture, calibration, training and conversion are shared. They match an observer of the calibrated graph
    with the one of the same name in the graph for training. A whole quantizer:

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

    VERSION: int  # to bump when the same graph would be quantized differently

    LIBRARIES: tuple[str, ...] = ()  # packages besides torch and torchao whose version changes what it does

    @abstractmethod
    def quantizer(self, scheme: Scheme, *, training: bool) -> Any:
        """Make torchao's Quantizer for the PT2E flow, with fake quantizers if the graph is for training.

        It skips nodes that have an annotation already: the layers that stay in fp32. Raises StageError for a scheme
        that it does not support.
        """

    def keeps_range(self, operator: object) -> bool:
        """Return whether the result of this operator shares the range, and the observer, of its input."""
        return False

    def finish(self, prepared: "fx.GraphModule", *, training: bool) -> None:
        """Change the graph after observers were inserted: undo rewrites that only the annotation needed."""
