"""Mix each sample of a batch with another one: what is learned is a share of both labels.

mixup     inputs are added up, in shares of L and 1 - L
cutmix    a rectangle of one picture is pasted into the other, of a share 1 - L of its area

L is drawn for each batch from a beta distribution. Sources: H. Zhang et al., mixup: Beyond Empirical Risk Minimization,
ICLR 2018, arXiv 1710.09412; S. Yun et al., CutMix, ICCV 2019, arXiv 1905.04899.
"""

import math
from dataclasses import dataclass

import numpy
import torch

from edgepack.core.errors import StageError

Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """The parameters of both distributions; 0 turns one off, and of two one is drawn for each batch."""

    mixup: float
    cutmix: float

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def check(self, inputs: Inputs) -> None:
        """Raises StageError for inputs that cannot be mixed."""
        if self and not all(each.is_floating_point() for each in inputs):
            raise StageError("numbers of tokens cannot be mixed", "remove mixup and cutmix, which are for pictures")
        if self.cutmix and not all(each.dim() == 4 for each in inputs):
            raise StageError("cutmix is for pictures, and an input is none", "use mixup")

    def mixed(self, inputs: Inputs, seed: int) -> tuple[Inputs, torch.Tensor, float]:
        """Return mixed inputs, which sample of the batch each was mixed with, and the share of its own label."""
        random = numpy.random.RandomState(seed % 2**32)
        count, device = len(inputs[0]), inputs[0].device
        cut = self.cutmix > 0 and (self.mixup == 0 or random.rand() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share = float(random.beta(alpha, alpha))
        others = torch.from_numpy(random.permutation(count)).to(device)
        if not cut:
            return tuple(share * each + (1 - share) * each[others] for each in inputs), others, share
        height, width = inputs[0].shape[2:]
        top, bottom = _span(height, share, random)
        left, right = _span(width, share, random)
        pasted = []
        for each in inputs:
            whole = each.clone()
            whole[:, :, top:bottom, left:right] = each[others][:, :, top:bottom, left:right]
            pasted.append(whole)
        return tuple(pasted), others, 1 - (bottom - top) * (right - left) / (height * width)


def _span(size: int, share: float, random: numpy.random.RandomState) -> tuple[int, int]:
    """Return the ends of the rectangle along one side; its middle is anywhere, and what is outside is lost."""
    middle, half = random.randint(size), round(size * math.sqrt(1 - share)) // 2
    return max(0, middle - half), min(size, middle + half)
