"""What the stored outcome of a step says, as measurements for the gate and as a few words for people."""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from edgepack.core.files import digest
from edgepack.core.metrics import METRICS
from edgepack.core.units import DURATION, SHARE, SIZE
from edgepack.measure.timing.figures import exact, timed, timings
from edgepack.records.artifact import Artifact, deflated
from edgepack.records.build import Build
from edgepack.records.file_contents import Contents
from edgepack.records.measurement import Measurement
from edgepack.workflows.build.plan import Step
from edgepack.workflows.build.store import Entry


def measurements(build: Build, step: Step, entry: Entry) -> tuple[Measurement, ...]:
    """Every metric that this step's outcome gives."""
    found = {"artifact": _sizes, "evaluation": _scores, "timing": timed}.get(step.kind)
    if found is None or {"not_run", "not_timed"} & entry.outcome.keys():
        return ()
    where = _where(entry)
    about = {
        "artifact": step.artifact,
        "sha256": _sha(build, step, entry),
        "evidence": where.get("evidence", "measured"),
        "taken_at": round(entry.made_at, 3),
        "reused": entry.made_at < build.started_at,
        "environment": where,
    }
    known = {**entry.outcome, **about, "subject": step.subject}
    return tuple(Measurement(**about, **figures) for figures in found(known))


def _where(entry: Entry) -> dict[str, Any]:
    """What the outcome depends on besides the file: as much of it as two figures must share to be compared."""
    made = entry.ingredients
    protocol = {"protocol": made["protocol"]["name"]} if "protocol" in made else {}
    data = {"data": digest(made["data"])[:16]} if "data" in made else {}
    return {**made.get("where", {}), **protocol, **data}


def deployed(build: Build, beside: Mapping[str, bytes], compressed: Mapping[str, int]) -> tuple[Measurement, ...]:
    """What an app that ships one of the files takes: with the files `beside` it, as stored, and for download.

    They are those that `unpack --deploy-only --runtime` gives, but for the manifest and the sums, which no app loads.
    `compressed` tells what each file comes to by itself.
    """
    stored, packed = (sum(size(content) for content in beside.values()) for size in (len, deflated))
    sizes = [each for each in build.measurements if each.metric == "size" and each.artifact in compressed]
    return tuple(
        found.model_copy(update=exact(metric, value, beside=sorted(beside)))
        for found in sizes
        for metric, value in (
            ("size.deploy", found.value + stored),
            ("size.download", float(compressed[found.artifact] + packed)),
        )
    )


def _sizes(outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield exact("size", outcome["bytes"])
    contents = Contents.model_validate(outcome["contents"]) if outcome.get("contents") else None
    if contents is None or outcome["format"] not in METRICS["delegation"].formats:
        return
    if contents.arena_bytes is not None:
        yield exact("memory.arena", contents.arena_bytes)
    if (share := contents.delegation) is not None:
        yield exact("delegation", share)


def _scores(outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield exact("accuracy", outcome["score"], rows=outcome["rows"])
    for metric, found in (("parity", "parity"), ("parity.runtimes", "runtimes")):
        if found in outcome:
            yield exact(metric, outcome[found]["agreement"], **outcome[found])
    for metric, figure in (("parity.difference", "largest_difference"), ("parity.cosine", "cosine")):
        if (value := outcome.get("parity", {}).get(figure)) is not None:
            yield exact(metric, value)


def _sha(build: Build, step: Step, entry: Entry) -> str:
    if step.kind == "artifact":
        return Artifact.model_validate(entry.outcome).sha256
    return next(artifact.sha256 for artifact in build.artifacts if artifact.label == step.artifact)


def tell(step: Step, entry: Entry) -> str:
    """The outcome of a step in a few words."""
    outcome = entry.outcome
    if "not_run" in outcome:
        return f"not run here: {outcome['not_run']}"
    if "not_timed" in outcome:
        return f"not timed: {outcome['not_timed']}"
    match step.kind:
        case "candidate":
            return f"accuracy {SHARE.format(outcome['accuracy'])}, {outcome['parameters']:,} parameters"
        case "artifact":
            return SIZE.format(outcome["bytes"])
        case "timing" if "estimate" in outcome:
            return f"{DURATION.format(outcome['estimate']['value_ms'])}, estimated"
        case "timing":
            figures = timings(outcome["answers"])["latency.p50"]
            return f"{DURATION.format(median(figures))}, {len(figures)} processes"
        case _:
            return f"accuracy {SHARE.format(outcome['score'])} of {outcome['rows']} test samples"
