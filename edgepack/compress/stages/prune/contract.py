"""Define what an importance of channels must and may provide."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgepack.models.structure.dependency_groups import Score


class Importance(Protocol):
    """Scores channels, heads or neurons by importance. Stands in compress/stages/prune/importances/.

    What has no default below must be defined; what has one may be left out. A whole importance:

        "The largest weight of each channel."

        VERSION = 1


        def score():
            def of_group(group):
                layer, channels = group[0].dep.target.module, group[0].idxs
                return layer.weight.abs().flatten(1).amax(1)[channels]

            return of_group
    """

    VERSION: int  # to bump when the same weights would give other scores

    LIBRARIES: tuple[str, ...] = ()  # packages besides torch and torch-pruning whose version changes the scores
    NEEDS_GRADIENTS: bool = False  # whether it needs the gradients of the loss on training samples
    FITS_ENCODERS: bool = True  # whether it works on heads and feed-forward neurons of a transformer

    @abstractmethod
    def score(self) -> "Score":
        """Return a function of a torch-pruning group that gives one number per channel, the least important lowest."""
