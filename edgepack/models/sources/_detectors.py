"""Detectors of torchvision that give what the task `detection` needs: boxes and scores of each anchor.

What torchvision's own model does before and after, resizing and selecting boxes, stays outside: it would be part of the
exported file. Names of weights are torchvision's.
"""

from math import prod
from typing import TYPE_CHECKING, Any

from edgepack.core.signature import Signature
from edgepack.data.tasks.detection import anchors

if TYPE_CHECKING:
    from torch import nn

NAMES = {"ssdlite320_mobilenet_v3_large": ("COCO_V1", "DEFAULT")}  # with their weights
_STRIDES, _RATIOS = (16, 32, 64, 128, 256, 512), (2, 3)  # those that the task has by default
_OUTPUTS = ["boxes", "scores"]
_CLASSES = 91  # of COCO, with background


def has_classes_of_coco(signature: Signature) -> bool:
    """Return whether weights of COCO fit the heads."""
    return signature.outputs[1].shape[1] == _CLASSES


def mismatch(name: str, signature: Signature) -> str:
    """Return why a model of torchvision does not give the outputs of the task, or "". Without torch."""
    wanted = [each.name for each in signature.outputs]
    if name not in NAMES:
        return f"{name} is a classifier, but the task is detection: use {', '.join(NAMES)}" * (wanted == _OUTPUTS)
    if wanted != _OUTPUTS:
        return f"{name} is a detector, which gives boxes and scores: use it with task: detection"
    _, height, width = signature.inputs[0].shape
    own, asked = anchors.count(anchors.grids(height, width, _STRIDES), _RATIOS), signature.outputs[0].shape[0]
    if own != asked:
        return f"{name} has {own:,} anchors in such pictures, but the task has {asked:,}: remove its strides and ratios"
    return ""


def structure(name: str, signature: Signature) -> "nn.Module":
    """Build the model without weights. Its parameters have torchvision's names."""
    from torch import Tensor, cat, nn

    from edgepack.core.process.libraries import torchvision

    class Detector(nn.Module):  # type: ignore[misc]
        """Gives offsets [n, anchors, 4] and logits [n, anchors, classes]."""

        def __init__(self, whole: Any) -> None:
            super().__init__()
            self.backbone, self.head = whole.backbone, whole.head

        def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
            maps = [*self.backbone(pictures).values()]
            return _rows(self.head.regression_head, maps), _rows(self.head.classification_head, maps)

    def _rows(head: Any, maps: list[Tensor]) -> Tensor:
        """Return a row for each anchor: cells row by row, and the anchors of each cell side by side."""
        width, found = head.num_columns, zip(head.module_list, maps, strict=True)
        grids = [layer(each).permute(0, 2, 3, 1) for layer, each in found]
        return cat([each.reshape(each.shape[0], prod(each.shape[1:]) // width, width) for each in grids], dim=1)

    make = getattr(torchvision().models.detection, name)
    return Detector(make(weights=None, weights_backbone=None, num_classes=signature.outputs[1].shape[1]))
