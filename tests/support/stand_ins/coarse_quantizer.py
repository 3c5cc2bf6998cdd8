"""A quantizer as another package would bring it: convolutions alone, their weights in one range each.

Where `coarse_quantizer` is imported, "coarse" names it.
"""

from typing import Any

import pytest
import torch
from factories import published
from torch import fx
from torchao.quantization.pt2e import (
    FusedMovingAvgObsFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from edgepack.compress.stages.quantize.contract import Scheme

VERSION = 1


def quantizer(scheme: Scheme, *, training: bool) -> Quantizer:
    return Coarse(scheme.bits, training)


class Coarse(Quantizer):  # type: ignore[misc]
    def __init__(self, bits: int, training: bool) -> None:
        super().__init__()
        observer: Any = MinMaxObserver
        if training:
            observer = FusedMovingAvgObsFakeQuantize.with_args(observer=MovingAverageMinMaxObserver)
        most = 2 ** (bits - 1) - 1
        self.activation = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-128,
            quant_max=127,
            qscheme=torch.per_tensor_affine,
            observer_or_fake_quant_ctr=observer,
        )
        self.weight = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-most,
            quant_max=most,
            qscheme=torch.per_tensor_symmetric,
            observer_or_fake_quant_ctr=observer,
        )

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        for node in model.graph.nodes:
            if node.target is torch.ops.aten.conv2d.default and Q_ANNOTATION_KEY not in node.meta:
                node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(
                    input_qspec_map={node.args[0]: self.activation, node.args[1]: self.weight},
                    output_qspec=self.activation,
                    _annotated=True,
                )
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Take every graph."""


@pytest.fixture(autouse=True)
def coarse_quantizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if an installed package published this module as the quantizer `coarse`."""
    published(monkeypatch, "quantizers", "coarse", __name__)
