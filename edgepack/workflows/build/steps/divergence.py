"""Find the first operator of a file that differs from torch."""

import logging
from functools import partial
from pathlib import Path

from edgepack.core import provenance
from edgepack.core.events import Note, StepProgress
from edgepack.core.files import digest
from edgepack.core.frozen import Json
from edgepack.measure import evaluate
from edgepack.workflows.build.planning.keys import plugin_facts
from edgepack.workflows.build.planning.step import StepId
from edgepack.workflows.build.workspace import Workspace

_SEARCH = 3  # bump when the search would give another sentence for the same file


def where(work: Workspace, id: StepId) -> str:
    """Return where a file begins to differ, or why that is unknown: errors here do not change a verdict."""
    evaluation, exporter = work.done[id.of("evaluation")], work.done[id.of("artifact")].plugin
    ingredients = {"evaluation": evaluation.key, "exporter": plugin_facts(exporter), "version": _SEARCH}
    key = digest({"kind": "difference", **ingredients})
    try:
        found = work.store.get("difference", key)
        if found is None:
            work.emit(Note(text=f"finding the first operator of {id.label} that differs from torch"))
            found = work.store.make("difference", key, ingredients, partial(search, work, id))
        return str(found.outcome["told"])
    except Exception as error:
        logging.getLogger(__name__).exception("where %s differs was not found", id.label)
        return f"the first operator that differs was not found: {type(error).__name__}, see build.log for the traceback"


def search(work: Workspace, id: StepId, folder: Path) -> Json:
    """Return the sentence as JSON, {"told": sentence}."""
    from edgepack.compress.training import numerics
    from edgepack.measure import divergence

    export = work.done[id.of("artifact")]
    file, torch = (evaluate.load(work.entry(each).path) for each in (id.of("evaluation"), work.reference(id.format)))
    with numerics.deterministic(work.recipe.seed, provenance.threads()):
        differing = evaluate.mismatched_rows(work.task, file, torch, divergence.SAMPLES)
        samples = divergence.rows(work.data.test, differing)
        candidate = work.shipped(work.candidate(work.candidate_of(export.ingredients["parent"])))

        def progress(done: int, total: int) -> None:
            work.emit(StepProgress(doing=f"exporting pieces to {id.label}", done=done, total=total))

        return {"told": divergence.find(candidate, export.plugin, work.session.run, samples, progress)}
