"""Pictures with the boxes of the objects in them: mirrored together, each pair by its own seed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgepack.data.loading import draws
from edgepack.data.pictures.samples import InMemory

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.pictures.samples import Pixels, Places


@dataclass(frozen=True, kw_only=True)
class Boxed:
    """The pictures of a split, `rows` of `pixels`, and their targets, float32 [n, most, 5]: left, top, right, bottom
    and label of each object, or -1 for none.
    """

    pixels: "Pixels"
    rows: "Places"
    targets: "Tensor"
    mirror: bool = False

    @property
    def augmented(self) -> bool:
        return self.mirror

    @property
    def held(self) -> bool:
        return isinstance(self.pixels, InMemory)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: "Tensor", seeds: "Tensor | None") -> "tuple[Tensor, ...]":
        import torch

        pictures = torch.from_numpy(self.pixels.take(self.rows[indices.numpy()].tolist()))
        targets = self.targets[indices]
        if not self.mirror or seeds is None:
            return pictures, targets
        half = draws.integers(seeds, 0, 2).bool()
        turned = mirrored(targets, pictures.shape[3])
        return (
            torch.where(half[:, None, None, None], pictures.flip(3), pictures),
            torch.where(half[:, None, None], turned, targets),
        )


def mirrored(targets: "Tensor", width: int) -> "Tensor":
    """Return the boxes of mirrored pictures of this width."""
    turned = targets.clone()
    turned[..., 0], turned[..., 2] = width - targets[..., 2], width - targets[..., 0]
    return turned
