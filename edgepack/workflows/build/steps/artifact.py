"""Export a file, read its contents, and keep what a runtime build for it needs."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.config.plugins import Choice
from edgepack.core.events import Note, StepProgress
from edgepack.export import contract
from edgepack.records.artifact import MODEL, RUNTIME_FILE, Artifact
from edgepack.workflows.build.planning.step import Step
from edgepack.workflows.build.workspace import Workspace

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate
    from edgepack.records.file_contents import Contents


def do(work: Workspace, step: Step, folder: Path) -> Artifact:
    exporter = step.plugin.module
    candidate = work.shipped(work.candidate(work.candidate_of(step.ingredients["parent"])))
    path = folder / f"{step.id.subject}{contract.suffix(step.plugin)}"
    work.emit(StepProgress(doing=f"writing {path.name}", done=0, total=1))
    contract.write(candidate, step.plugin, path)
    contents = None
    if step.id.subject == MODEL:
        contents = file_contents(work, exporter, path, candidate)
        _keep_runtime_files(step.plugin, path)
    return Artifact.of(
        path, format=step.id.format, runtime=exporter.RUNTIME, subject=step.id.subject, contents=contents
    )


def file_contents(work: Workspace, exporter: Any, path: Path, candidate: "Candidate") -> "Contents | None":
    """Return the contents of a file, for people; a file is still valid if they cannot be read."""
    try:
        found: Contents | None = exporter.inspect(path, candidate)
    except Exception as error:
        logging.getLogger(__name__).exception("the contents of %s could not be read", path.name)
        message = (
            f"the contents of {path.name} could not be read ({type(error).__name__}; see build.log for the traceback)"
        )
        work.emit(Note(text=f"warning: {message}: the report will lack its bytes by layer, delegation and arena"))
        return None
    return found


def _keep_runtime_files(exporter: Choice, path: Path) -> None:
    """Store the exporter's files for a runtime build next to the exported file, for the bundle."""
    made = exporter.module.runtime_files(path, exporter.config)
    for name, content in made.items():
        (path.parent / f"{RUNTIME_FILE}{name}").write_bytes(content)
