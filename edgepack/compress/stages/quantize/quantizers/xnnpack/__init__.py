"""ExecuTorch's quantizer for XNNPACK: weights per channel, activations per tensor, embedding tables per row.

A ReLU is taken into the layer before it; so are ReLU6 and the HardSigmoid of a gate, which the quantizer itself does
not know. What it gives suits ONNX Runtime as well.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import fx

    from edgepack.compress.stages.quantize.contract import Scheme

VERSION = 1
LIBRARIES = ("executorch",)


def quantizer(scheme: "Scheme", *, training: bool) -> Any:
    from edgepack.compress.stages.quantize.quantizers.xnnpack.annotations import Annotator

    return Annotator(scheme, training=training)


def keeps_range(operator: object) -> bool:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer_utils import _is_share_obs_or_fq_op

    return bool(_is_share_obs_or_fq_op(operator))


def finish(prepared: "fx.GraphModule", *, training: bool) -> None:
    from edgepack.compress.stages.quantize import low_bits
    from edgepack.compress.stages.quantize.quantizers.xnnpack import annotations, limits

    if training:
        annotations.scale_along_outputs(prepared)
        low_bits.round_rows_read(prepared)
    limits.restore(prepared)
