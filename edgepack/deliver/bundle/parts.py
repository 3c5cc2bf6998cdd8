"""Define BundleParts, what a build passes on for packing. No model runs while a bundle is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack.core.signature import Signature
from edgepack.deliver.bundle.manifest import TestSamples
from edgepack.records.generated import Generated


@dataclass(frozen=True, kw_only=True)
class BundleParts:
    """Mappings are keyed by the label of the exported file; for shipped files that is the format."""

    signature: Signature
    reading: str  # of the task
    steady: bool  # whether the task compares numbers of outputs
    models: Mapping[str, bytes]
    runtime: Mapping[str, Mapping[str, bytes]]  # files for building a runtime, by name
    decided: Sequence[dict[str, Any]]  # for each stage, the settings that it chose by measuring, as JSON
    samples: Mapping[str, bytes]  # from the test split, by file name: case-0-pixels.bin, case-0.txt
    targets: Sequence[Any]  # one per sample
    test: TestSamples | None  # how many samples of the test split were used, unless all
    answers: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]  # of each sample, the numbers of each output
    not_run: Mapping[str, str]  # why there are no answers
    generated: Mapping[str, Sequence[Generated]]  # what a file writes after each sample's beginning, if it writes text
