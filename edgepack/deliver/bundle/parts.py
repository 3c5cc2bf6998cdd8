"""Define BundleParts, what a build passes on for packing. No model runs while a bundle is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack.core.signature import Signature


@dataclass(frozen=True, kw_only=True)
class BundleParts:
    """Mappings are by the label of the exported file, which of what ships is its format."""

    signature: Signature
    models: Mapping[str, bytes]
    runtime: Mapping[str, Mapping[str, bytes]]  # what a runtime's own build needs, by file name
    decided: Sequence[dict[str, Any]]  # by stage, the settings that it chose by measuring, as JSON
    samples: Mapping[str, bytes]  # of the test split, by file name: case-0-pixels.bin, case-0.txt
    targets: Sequence[int]  # one a sample
    answers: Mapping[str, Sequence[Sequence[float]]]  # logits of each sample
    not_run: Mapping[str, str]  # why there are no answers
