"""What a device takes for a model, worked out from its operators and a few figures of its profile: no measurement."""

from edgepack.config import Frozen


class Analytic(Frozen):
    """The figures of a device that estimates are made with."""

    calibrated_from: str  # where the figures come from
