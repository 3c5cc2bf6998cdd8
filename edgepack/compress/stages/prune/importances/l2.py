"""Euclidean norm of the weights of a group.  Source: G. Fang et al., CVPR 2023, arXiv 2301.12900."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.models.structure.dependency_groups import Score

VERSION = 1


def score() -> "Score":
    from torch_pruning.pruner.importance import GroupMagnitudeImportance

    found: Score = GroupMagnitudeImportance(p=2)
    return found
