"""Scale of the batch norm behind a channel, or l2.  Source: Z. Liu et al., ICCV 2017, arXiv 1708.06519."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.models.structure.dependency_groups import Score

VERSION = 1
FITS_ENCODERS = False


def score() -> "Score":
    from torch_pruning.pruner.importance import BNScaleImportance, GroupMagnitudeImportance

    by_norm, by_weight = BNScaleImportance(), GroupMagnitudeImportance(p=2)

    def of_group(group: Any) -> "Tensor":
        worth: Tensor | None = by_norm(group)
        return by_weight(group) if worth is None else worth

    return of_group
