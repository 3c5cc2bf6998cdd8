"""Check that an exported model loads and runs, and find the operator that fails otherwise.

    check(candidate, exporter, run, progress)   # before anything is trained: the weights do not matter

A file may be written without a word and yet be refused by its runtime, or end the process that loads it. That has to be
known early: training takes hours.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from edgepack.core.errors import RefusedError, StageError
from edgepack.core.units import SHARE
from edgepack.data.splits import Split
from edgepack.export import contract
from edgepack.measure import evaluate
from edgepack.measure.divergence import Progress, difference, find, first_refused
from edgepack.measure.timing.protocol import Run
from edgepack.models.outputs import tensors
from edgepack.models.source_lines import UnplacedError, of_node, part_of
from edgepack.models.structure.folding import WEIGHTED

if TYPE_CHECKING:
    from torch import fx

    from edgepack.config.plugins import Choice
    from edgepack.models.candidate import Candidate

# RMS error of a file's outputs on noise, relative to the reference. Int8 causes a few per cent, somewhat more where
# products saturate; a layer with the constants of another causes far more.
_BROKEN = 0.25


def check(
    candidate: "Candidate", exporter: "Choice", run: Run | None, progress: Progress, *, compare: bool = True
) -> None:
    """Raises StageError with the operator at fault unless the file can be written, loaded and run, and its outputs on
    noise match the torch model. Without `run` it is only written; without `compare` outputs are not checked. `progress`
    is called during the search for the operator.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"trial{contract.suffix(exporter)}"
        try:
            contract.write(candidate, exporter, path)
        except UnplacedError as error:
            raise _refused(
                candidate, exporter, run, progress, f"{error.message}, see build.log for the traceback"
            ) from error
        if run is None:
            return
        try:
            off = _off(candidate, exporter, run, path)
        except RefusedError as error:
            reason = error.message.replace(str(path), f"the {exporter.name} file")
            raise _refused(candidate, exporter, run, progress, reason) from error
        if not compare or off <= _BROKEN:
            return
        where = find(candidate, exporter, run, noise(candidate), progress)
    message = (
        f"the {exporter.name} file gives other outputs than the torch model: on random inputs they differ by "
        f"{SHARE.format(off)}"
    )
    raise StageError(f"{message}; {where}", _way_out(candidate, exporter, None))


def _off(candidate: "Candidate", exporter: "Choice", run: Run, path: Path) -> float:
    samples = noise(candidate)
    with torch.no_grad():
        expected = [tensors(candidate.module(*batch.inputs)) for batch in samples.batches(1)]
    values = evaluate.outputs(run, file=path, runtime=exporter.module.RUNTIME, split=samples, folder=path.parent)
    pairs = zip(values, (torch.cat(each).numpy() for each in zip(*expected, strict=True)), strict=True)
    return max(difference(*pair).share for pair in pairs)


def noise(candidate: "Candidate") -> Split:
    inputs = candidate.noise()
    return Split(inputs=inputs, targets=torch.zeros(len(inputs[0]), dtype=torch.long))


def _refused(
    candidate: "Candidate", exporter: "Choice", run: Run | None, progress: Progress, reason: str
) -> StageError:
    """Return the error to raise, with the first operator at fault."""
    node = first_refused(candidate, exporter, run, noise(candidate), progress)
    if node is None:
        return StageError(reason, _way_out(candidate, exporter, None))
    place = f" at {found}" if (found := of_node(node)) else ""
    return StageError(
        f"{reason}; the first operator that fails is '{node.target}'{place}", _way_out(candidate, exporter, node)
    )


def _way_out(candidate: "Candidate", exporter: "Choice", node: "fx.Node | None") -> str:
    weighted = candidate.form == "exported" and node is not None and node.target in WEIGHTED
    fp32 = f"keep it in fp32 (quantize: {{fp32: ['{part_of(node)}']}}), " if weighted and part_of(node) else ""
    return f"{fp32}write it with other operators, or remove {exporter.name} from `export`"
