"""Define the operations that a device runs for an exported file, each with its work and memory traffic.

An exporter that can tell gives them by `operations(path, quantization)`, read from the file alone, so that files which
edgepack did not make are read as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

Kind = Literal["stem", "conv", "pointwise", "depthwise", "linear", "elementwise", "portable"]
Dtype = Literal["fp32", "int8"]
Shape = Sequence[int]
_STEP = 8  # input channels


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operator of one inference.

    kind      conv         a convolution; `pointwise` with a kernel of 1 x 1, `depthwise` with one input channel per
                          group, `stem` with fewer input channels than kernels take in one step
             linear       a product of matrices
             elementwise  everything else
             portable     everything that ExecuTorch's own kernels compute, which are slow
    macs      multiply-accumulates; elementwise operators have none
    elements  of its result; of an elementwise operator, of the largest tensor that it reads or writes
    bytes     of the tensors that it reads and writes, weights among them
    weights   bytes of the constants that it reads
    """

    name: str
    kind: Kind
    dtype: Dtype = "fp32"
    macs: int = 0
    elements: int
    bytes: int
    weights: int = 0


def convolution(kernel: Shape, inputs: int, groups: int) -> Kind:
    """Return the kind of a convolution with this kernel, each output reading `inputs` channels.

    >>> convolution((3, 3), 64, 1), convolution((1, 1), 64, 1), convolution((3, 3), 1, 64), convolution((3, 3), 3, 1)
    ('conv', 'pointwise', 'depthwise', 'stem')
    """
    if inputs == 1 and groups > 1:
        return "depthwise"
    if inputs < _STEP:
        return "stem"
    return "pointwise" if prod(kernel) == 1 else "conv"
