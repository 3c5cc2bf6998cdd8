"""First-order Taylor expansion of the loss.  Source: P. Molchanov et al., CVPR 2019, arXiv 1906.10771."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.models.structure.dependency_groups import Score

VERSION = 1
NEEDS_GRADIENTS = True


def score() -> "Score":
    from torch_pruning.pruner.importance import GroupTaylorImportance

    found: Score = GroupTaylorImportance()
    return found
