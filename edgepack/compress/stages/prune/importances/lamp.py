"""Magnitude scaled by what is larger in the same layer.  Source: J. Lee et al., ICLR 2021, arXiv 2010.07611."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.models.structure.dependency_groups import Score

VERSION = 1
FITS_ENCODERS = False


def score() -> "Score":
    from torch_pruning.pruner.importance import LAMPImportance

    found: Score = LAMPImportance(p=2)
    return found
