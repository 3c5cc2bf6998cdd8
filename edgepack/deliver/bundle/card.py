"""Render MODEL_CARD.md: what the model does, how it was made, how good its files are. No timings: they vary.

After M. Mitchell et al., Model Cards for Model Reporting, arXiv 1810.03993, as far as a build knows the answers.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgepack.core.units import SIZE
from edgepack.deliver import wording
from edgepack.deliver.bundle import rendering
from edgepack.records.build import Build

if TYPE_CHECKING:
    from edgepack.core.signature import Signature
    from edgepack.deliver.bundle.manifest import Manifest


# What is said of the labels, of an output, and of parity, by the task's `reading`.
_SAID = {
    "label": (" in", "class", "; the largest is the label, by its line in `io/labels.txt`", "decides as torch does"),
    "tags": (
        " with",
        "label",
        "; 1 / (1 + exp(-x)) is the probability of the label in the same line of `io/labels.txt`, "
        "which is given above {threshold}",
        "gives the labels that torch gives",
    ),
    "values": (" of", "number", "; their names are the lines of `io/labels.txt`", "agrees with torch"),
    "shapes": (" with", "label", "", "agrees with torch"),
}


def render(
    build: Build,
    manifest: "Manifest",
    signature: "Signature",
    reading: str = "shapes",
    settings: Mapping[str, Any] = {},
    *,
    elsewhere: bool = False,
) -> bytes:
    """Render the card; `reading` is that of the task, and `settings` are the task's.

    With `elsewhere` files may have run on another computer: scores are left to the report.
    """
    joined, noun, output, parity = _SAID[reading]
    labels = f"{joined} {wording.plural(len(signature.labels), noun)}" if signature.labels else ""
    missing = "see the report" if elsewhere else "not run"
    return rendering.render(
        "MODEL_CARD.md.j2",
        build=build,
        manifest=manifest,
        signature=signature,
        labels=labels,
        title=_title(manifest, settings),
        output=output.format(**settings),
        reading=reading,
        parity=parity,
        shown=lambda found: wording.figure(found.metric, found.value) if found else missing,
        elsewhere=elsewhere,
        figure=wording.figure,
        named=lambda choice: next(
            f"{kind}: {name}" if isinstance(name, str) else kind for kind, name in choice.items()
        ),
        size=SIZE.format,
    )


def _title(manifest: "Manifest", settings: Mapping[str, Any]) -> str:
    """Return the task in words: a user's own by the name of its class."""
    own = str(settings.get(manifest.task, "")).rpartition(":")[2]
    return own or manifest.task.replace("_", " ").capitalize()
