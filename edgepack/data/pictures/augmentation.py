"""Random changes of training pictures, by torchvision's transforms.

Those of a picture depend on its own seed alone, see draws.seeded.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from edgepack.core.frozen import Frozen
from edgepack.core.units import Share
from edgepack.data.loading import draws

if TYPE_CHECKING:
    from torch import Tensor

    Transform = Callable[[Tensor], Tensor]


class Augmentation(Frozen):
    """Which changes, in this order; what is left out is not done."""

    crop: tuple[Share, Share] | None = Field(
        default=None, description="area of random crops, from and to, as shares of the picture: [35 %, 100 %]"
    )
    flip: bool = Field(default=True, description="mirror half of the pictures")
    rand_augment: int = Field(default=0, ge=0, le=10, description="number of random operations of RandAugment")
    magnitude: int = Field(default=9, ge=0, le=30, description="strength of these operations")
    color: float = Field(
        default=0.0, ge=0, le=1, description="largest relative change of brightness, contrast and saturation"
    )
    erase: Share = Field(default=0.0, description="probability that a rectangle is erased")

    @model_validator(mode="after")
    def _possible(self) -> "Augmentation":
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1]:
            raise ValueError(f"crop goes from {self.crop[0]:.0%} to {self.crop[1]:.0%}: it must be above 0 %, and rise")
        return self

    def transform(self, size: int, mean: Sequence[float]) -> "Transform":
        """Return a function of one picture of bytes [channels, height, width]; `mean` is what is erased to, 0 to 1.

        Without random crops, the result has the size of the picture. Sources: E. Cubuk et al., RandAugment, CVPR
        Workshops 2020, arXiv 1909.13719; Z. Zhong et al., Random Erasing, AAAI 2020, arXiv 1708.04896.
        """
        from edgepack.core.process.libraries import torchvision

        torchvision()
        from torchvision.transforms import v2

        steps = []
        if self.crop is not None:
            steps.append(v2.RandomResizedCrop(size, scale=self.crop, antialias=True))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.rand_augment:
            steps.append(v2.RandAugment(self.rand_augment, self.magnitude))
        if self.color:
            steps.append(v2.ColorJitter(self.color, self.color, self.color))
        if self.erase:
            steps.append(v2.RandomErasing(self.erase, value=[255 * each for each in mean]))
        found: Transform = v2.Compose(steps) if steps else v2.Identity()
        return found

    def transform_of_masks(self, size: int) -> "Transform":
        """Return what moves the mask of a picture as `transform` moves the picture, if both get the same seed: it draws
        the same numbers first, since the changes that move come before the others.
        """
        from edgepack.core.process.libraries import torchvision

        torchvision()
        from torchvision.transforms import InterpolationMode, v2

        steps: list[Transform] = []
        if self.crop is not None:
            steps.append(v2.RandomResizedCrop(size, self.crop, interpolation=InterpolationMode.NEAREST))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        found: Transform = v2.Compose(steps) if steps else v2.Identity()
        return found


def changed_each(pictures: "Tensor", transform: "Transform", seeds: "Tensor") -> "Tensor":
    """Return pictures [n, channels, height, width], each changed by its own seed."""
    import torch

    changed = []
    for picture, seed in zip(pictures, seeds.tolist(), strict=True):
        with draws.seeded(seed):
            changed.append(transform(picture))
    return torch.stack(changed)
