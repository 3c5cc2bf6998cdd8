"""Collect what a finished build passes on for packing into its bundle."""

from edgepack.config.device import Device
from edgepack.core.frozen import Json
from edgepack.deliver.bundle.assemble import is_elsewhere
from edgepack.deliver.bundle.manifest import TestSamples
from edgepack.deliver.bundle.parts import BundleParts
from edgepack.records.artifact import RUNTIME_FILE
from edgepack.records.build import Build
from edgepack.workflows.build.outcomes import AnswersOutcome, CandidateOutcome, EvaluationOutcome, ReferenceOutcome
from edgepack.workflows.build.planning.step import StepId
from edgepack.workflows.build.steps.evaluation import answers, cases
from edgepack.workflows.build.steps.generation import generated
from edgepack.workflows.build.store import Entry
from edgepack.workflows.build.workspace import Workspace


def bundle_parts(build: Build, device: Device, work: Workspace) -> BundleParts:
    """Raises DeviceError if a file was damaged since it was measured."""
    reference = work.entry(work.reference(work.recipe.exporters[0].name))  # all have the same samples
    torch = ReferenceOutcome.read(reference)
    exports = {each.label: StepId("artifact", each.subject, each.format) for each in build.shipped()}
    found = {label: _answers(work, id, device) for label, id in exports.items()}
    not_run = {label: why for label, (_, why) in found.items() if why}
    return BundleParts(
        signature=work.task.file_signature,
        reading=work.task.reading,
        steady=work.task.steady,
        models={label: work.file(id)[1].read_bytes() for label, id in exports.items()},
        runtime={label: _beginning(work.entry(id), RUNTIME_FILE) for label, id in exports.items()},
        samples={f"case-{name}": content for name, content in _beginning(reference, "case-").items()},
        decided=_decided(work),
        targets=torch.targets,
        test=TestSamples(used=torch.rows, of=torch.of) if torch.of else None,
        answers={label: cases(work, entry) for label, (entry, why) in found.items() if not why},
        not_run=not_run,
        generated={label: generated(work, id) for label, id in exports.items() if label not in not_run},
    )


def _decided(work: Workspace) -> list[Json]:
    """Return what each stage chose by measuring; if it made one candidate per quantizer, the choice for the first
    format, since a recipe can express only one.
    """
    variant = work.planner.variant(work.recipe.exporters[0])
    made = [id for id in work.done if id.kind == "candidate" and id.format in ("", variant)]
    return [CandidateOutcome.read(work.entry(id)).decided for id in made[1:]]


def _answers(work: Workspace, id: StepId, device: Device) -> tuple[Entry, str]:
    """Return the entry with a file's outputs for the samples, and why it was not run, or ""."""
    if is_elsewhere(device):
        entry = answers(work, id)
        return entry, AnswersOutcome.read(entry).not_run
    entry = work.entry(id.of("evaluation"))
    return entry, EvaluationOutcome.read(entry).not_run


def _beginning(entry: Entry, prefix: str) -> dict[str, bytes]:
    """Return the files of an entry with this name prefix, by the rest of their names."""
    names = [name for name in sorted(entry.files) if name.startswith(prefix)]
    return {name.removeprefix(prefix): (entry.path / name).read_bytes() for name in names}
