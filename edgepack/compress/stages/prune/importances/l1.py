"""Sum of the absolute weights of a group.  Source: H. Li et al., ICLR 2017, arXiv 1608.08710."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.models.structure.dependency_groups import Score

VERSION = 1


def score() -> "Score":
    from torch_pruning.pruner.importance import GroupMagnitudeImportance

    found: Score = GroupMagnitudeImportance(p=1)
    return found
