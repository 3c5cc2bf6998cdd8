"""Turn outcomes of steps into measurements for the gate."""

from collections.abc import Iterator, Mapping

from edgepack.core.files import digest
from edgepack.core.frozen import Json
from edgepack.core.metrics import METRICS
from edgepack.measure.timing.figures import exact, readings
from edgepack.records.artifact import MODEL, TEACHER, Artifact, deflated, label_of
from edgepack.records.build import Build
from edgepack.records.measurement import Measurement, Reading
from edgepack.workflows.build.outcomes import EvaluationOutcome, TimingOutcome
from edgepack.workflows.build.planning.step import Step
from edgepack.workflows.build.store import Entry


def measurements(build: Build, step: Step, entry: Entry) -> tuple[Measurement, ...]:
    """Return every measurement in this step's outcome."""
    where = _where(entry)
    about = {
        "evidence": where.get("evidence", "measured"),
        "taken_at": round(entry.made_at, 3),
        "reused": entry.made_at < build.started_at,
        "environment": where,
    }
    return tuple(
        Measurement.of(reading, {**about, "artifact": label, "sha256": _sha(build, label, entry)})
        for label, reading in _readings(step, entry, where.get("threads"))
    )


def _readings(step: Step, entry: Entry, threads: int | None) -> Iterator[tuple[str, Reading]]:
    match step.kind:
        case "artifact":
            yield from ((step.id.label, each) for each in _sizes(Artifact.model_validate(entry.outcome)))
        case "evaluation":
            yield from ((step.id.label, each) for each in _scores(EvaluationOutcome.read(entry)))
        case "timing":
            found = TimingOutcome.read(entry)
            for subject, timed in ((MODEL, found.model), (TEACHER, found.teacher)):
                label = label_of(step.id.format, subject)
                yield from ((label, each) for each in readings(timed, threads=threads, doubted=subject == MODEL))


def _where(entry: Entry) -> Json:
    """Return the environment of an outcome: what must be equal for two figures to be compared. As JSON."""
    made = entry.ingredients
    protocol = {"protocol": made["protocol"]["name"]} if "protocol" in made else {}
    cut = [made["cut"]] if "cut" in made else []
    data = {"data": digest([made["data"], *cut] if cut else made["data"])[:16]} if "data" in made else {}
    return {**made.get("where", {}), **protocol, **data}


def deployed(build: Build, beside: Mapping[str, bytes], compressed: Mapping[str, int]) -> tuple[Measurement, ...]:
    """Return what an app ships with each file: the file and those `beside` it, as stored and compressed for download.

    These are the files of `unpack --deploy-only --runtime` without manifest and sums, which no app loads. `compressed`
    is the download size of each model file.
    """
    stored, packed = (sum(size(content) for content in beside.values()) for size in (len, deflated))
    sizes = [each for each in build.measurements if each.metric == "size" and each.artifact in compressed]
    return tuple(
        found.model_copy(update=exact(metric, value, beside=sorted(beside)).model_dump(exclude_unset=True))
        for found in sizes
        for metric, value in (
            ("size.deploy", found.value + stored),
            ("size.download", float(compressed[found.artifact] + packed)),
        )
    )


def _sizes(artifact: Artifact) -> Iterator[Reading]:
    yield exact("size", artifact.bytes)
    contents = artifact.contents
    if contents is None or artifact.format not in METRICS["delegation"].formats:
        return
    if contents.arena_bytes is not None:
        yield exact("memory.arena", contents.arena_bytes)
    if (share := contents.delegation) is not None:
        yield exact("delegation", share)


def _scores(found: EvaluationOutcome) -> Iterator[Reading]:
    if found.not_run:
        return
    for metric, score in found.scores.items():
        yield exact(metric, score, rows=found.rows, **({"of": found.of} if found.of else {}))
    if found.parity:
        yield exact("parity", found.parity.agreement, **found.parity.model_dump(exclude_unset=True))
    if found.runtimes:
        detail = {"with": found.beside, **found.runtimes.model_dump(exclude_unset=True)}
        yield exact("parity.runtimes", found.runtimes.agreement, **detail)
    if found.parity and found.parity.largest_difference is not None:
        yield exact("parity.difference", found.parity.largest_difference)
    if found.parity and found.parity.cosine is not None:
        yield exact("parity.cosine", found.parity.cosine)


def _sha(build: Build, label: str, entry: Entry) -> str:
    known = [artifact.sha256 for artifact in build.artifacts if artifact.label == label]
    return known[0] if known else Artifact.model_validate(entry.outcome).sha256
