"""What an exported file writes after the beginning of each of the bundle's samples, if it writes text."""

from contextlib import closing
from pathlib import Path

from edgepack.config.device import Controls
from edgepack.core import provenance
from edgepack.core.files import digest
from edgepack.core.frozen import Json
from edgepack.data.splits import EXAMPLES
from edgepack.measure.processes import Host
from edgepack.records.generated import Generated
from edgepack.workflows.build.outcomes import GeneratedOutcome
from edgepack.workflows.build.planning.step import StepId
from edgepack.workflows.build.workspace import Workspace

_PROMPT, _COUNT = 16, 8  # tokens
_VERSION = 1  # bump when the same file would write another text


def generated(work: Workspace, id: StepId) -> tuple[Generated, ...]:
    """Return what a file writes on one thread of this computer, sample by sample; nothing of one that does not write,
    or cannot be run here.
    """
    if not work.recipe.task.module.GENERATES:
        return ()
    with closing(Host(Controls(threads=1))) as here:
        artifact, _ = work.file(id)
        versions = provenance.installed(artifact.runtime)
        ingredients = {
            "file": artifact.sha256,
            "samples": work.done[work.reference(id.format)].key,
            "where": {**here.facts, "versions": versions},
        }
        key = digest({"kind": "generated", "version": _VERSION, **ingredients})
        entry = work.store.get("generated", key) or work.store.make(
            "generated", key, ingredients, lambda folder: _written(work, id, here, folder)
        )
    return GeneratedOutcome.read(entry).samples


def _written(work: Workspace, id: StepId, here: Host, folder: Path) -> Json:
    import numpy

    artifact, file = work.file(id)
    job = {"runtime": artifact.runtime, "file": str(file)}
    if not here.run({**job, "mode": "describe"})["states"]:
        return GeneratedOutcome().stored()
    windows = work.data.test.head(EXAMPLES)[0].numpy()
    prompt = min(_PROMPT, windows.shape[1] // 2)
    count = min(_COUNT, windows.shape[1] - prompt)
    given = folder / "prompts.npy"
    numpy.save(given, windows[:, :prompt])
    tokens = here.run({**job, "mode": "generate", "inputs": [str(given)], "count": count})["tokens"]
    return GeneratedOutcome(samples=tuple(Generated(prompt=prompt, tokens=tuple(each)) for each in tokens)).stored()
