"""What a finished build hands over to be packed into its bundle."""

from edgepack.config.device import Device
from edgepack.deliver.bundle.assemble import is_elsewhere
from edgepack.deliver.bundle.parts import BundleParts
from edgepack.records.artifact import RUNTIME_FILE
from edgepack.records.build import Build
from edgepack.workflows.build.store import Entry
from edgepack.workflows.build.workspace import Work


def bundle_parts(build: Build, device: Device, work: Work) -> BundleParts:
    """Raises DeviceError where a file was damaged since it was measured."""
    reference = work.entry("reference outputs")
    labels = [each.label for each in build.shipped()]
    outcomes = {
        label: work.answers(label) if is_elsewhere(device) else work.entry(f"evaluate {label}").outcome
        for label in labels
    }
    return BundleParts(
        signature=work.signature,
        models={label: work.file(label)[1].read_bytes() for label in labels},
        runtime={label: _beginning(work.entry(f"export {label}"), RUNTIME_FILE) for label in labels},
        samples={f"case-{name}": content for name, content in _beginning(reference, "case-").items()},
        targets=reference.outcome["targets"],
        answers={label: outcome["cases"] for label, outcome in outcomes.items() if "cases" in outcome},
        not_run={label: outcome["not_run"] for label, outcome in outcomes.items() if "not_run" in outcome},
    )


def _beginning(entry: Entry, prefix: str) -> dict[str, bytes]:
    """The files of an entry whose names begin so, by the rest of their names."""
    names = [name for name in sorted(entry.files) if name.startswith(prefix)]
    return {name.removeprefix(prefix): (entry.path / name).read_bytes() for name in names}
