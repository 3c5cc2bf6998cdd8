"""Convert the first convolution of a trained model to another number of channels."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def over_channels(weight: "Tensor", channels: int) -> "Tensor":
    """Convert a convolution's weight [out, in, h, w] to another number of channels, with outputs of the same size.

    One channel gets the sum, so that a grey image gives the same outputs as three equal channels.
    """
    if channels == weight.shape[1]:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, -(-channels // weight.shape[1]), 1, 1)[:, :channels]
    return repeated * (weight.shape[1] / channels)
