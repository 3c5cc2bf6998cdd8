"""Render MODEL_CARD.md: what the model does, how it was made, how good its files are. No timings: they vary.

After M. Mitchell et al., Model Cards for Model Reporting, arXiv 1810.03993, as far as a build knows the answers.
"""

from typing import TYPE_CHECKING

from edgepack.core.units import SIZE
from edgepack.deliver import wording
from edgepack.deliver.bundle import rendering
from edgepack.records.build import Build

if TYPE_CHECKING:
    from edgepack.core.signature import Signature
    from edgepack.deliver.bundle.manifest import Manifest


def render(build: Build, manifest: "Manifest", signature: "Signature", *, elsewhere: bool = False) -> bytes:
    """Render the card. With `elsewhere` files may have run on another computer: scores are left to the report."""
    missing = "see the report" if elsewhere else "not run"
    return rendering.render(
        "MODEL_CARD.md.j2",
        build=build,
        manifest=manifest,
        signature=signature,
        shown=lambda found: wording.figure(found.metric, found.value) if found else missing,
        elsewhere=elsewhere,
        figure=wording.figure,
        named=lambda choice: next(
            f"{kind}: {name}" if isinstance(name, str) else kind for kind, name in choice.items()
        ),
        size=SIZE.format,
    )
