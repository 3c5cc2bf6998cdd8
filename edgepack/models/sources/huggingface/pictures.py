"""Vision transformers: ViT and DeiT, with the channels of the data, and positions for the size of its pictures.

The first convolution keeps what it has learned, summed or repeated over the channels, and the positions of patches are
interpolated, as in A. Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, arXiv 2010.11929.
"""

from typing import TYPE_CHECKING, Any

from edgepack.core.signature import Signature
from edgepack.models.sources.huggingface.facts import PictureFacts

if TYPE_CHECKING:
    from torch import Tensor, nn

AUTO = "AutoModelForImageClassification"


def incompatibility(name: str, known: PictureFacts, signature: Signature) -> str:
    """Say why it cannot take the data, without its name, or ""."""
    shape = signature.inputs[0].shape
    if len(shape) != 3:
        return f"needs pictures, but the data has inputs of shape {[*shape]}"
    if not all(_grid(known, signature)):
        down, across = known.patch
        return f"has patches of {down} x {across}, but the pictures are of {shape[1]} x {shape[2]}"
    return ""


def _grid(known: PictureFacts, signature: Signature) -> tuple[int, int]:
    """Return how many patches the data's pictures have, down and across."""
    _, height, width = signature.inputs[0].shape
    return height // known.patch[0], width // known.patch[1]


def adapted(model: Any, known: PictureFacts, signature: Signature) -> "nn.Module":
    """Return the classifier of the data's pictures around the model of transformers, which is changed in place."""
    from torch import nn

    from edgepack.models.sources._channels import over_channels
    from edgepack.models.structure.encoder import PictureClassifier

    embeddings = getattr(model, known.model_type).embeddings
    patches, (channels, *size) = embeddings.patch_embeddings, signature.inputs[0].shape
    weight = patches.projection.weight.detach()
    patches.projection.weight = nn.Parameter(over_channels(weight, channels))
    patches.projection.in_channels = patches.num_channels = channels
    patches.image_size = embeddings.image_size = tuple(size)
    table = embeddings.position_embeddings.detach()
    embeddings.position_embeddings = nn.Parameter(_placed(table, known.grid, _grid(known, signature)))
    return PictureClassifier(model)


def _placed(table: "Tensor", had: tuple[int, int], has: tuple[int, int]) -> "Tensor":
    """Interpolate the positions of patches [1, tokens, width] to another grid; class tokens, which come first, stay."""
    import torch
    from torch.nn import functional

    before = table.shape[1] - had[0] * had[1]
    if had == has:
        return table
    patches = table[:, before:].unflatten(1, had).permute(0, 3, 1, 2)
    moved = functional.interpolate(patches, size=has, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :before], moved.flatten(2).transpose(1, 2)], dim=1)
