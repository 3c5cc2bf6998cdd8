"""What the stored outcome of a step says, as measurements for the gate and as a few words for people."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from edgepack.artifact import Artifact, deflated
from edgepack.benchmark import Measurement, doubts, interval, timings
from edgepack.budgets import METRICS
from edgepack.contents import Contents
from edgepack.plan import Step
from edgepack.result import Build
from edgepack.store import Entry, digest
from edgepack.units import DURATION, SHARE, SIZE


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
        found.model_copy(update=_exact(metric, value, beside=sorted(beside)))
        for found in sizes
        for metric, value in (
            ("size.deploy", found.value + stored),
            ("size.download", float(compressed[found.artifact] + packed)),
        )
    )


def _sizes(outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield _exact("size", outcome["bytes"])
    contents = Contents.model_validate(outcome["contents"]) if outcome.get("contents") else None
    if contents is None or outcome["format"] not in METRICS["delegation"].formats:
        return
    if contents.arena_bytes is not None:
        yield _exact("memory.arena", contents.arena_bytes)
    if (share := contents.delegation) is not None:
        yield _exact("delegation", share)


def _scores(outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield _exact("accuracy", outcome["score"], rows=outcome["rows"])
    for metric, found in (("parity", "parity"), ("parity.runtimes", "runtimes")):
        if found in outcome:
            yield _exact(metric, outcome[found]["agreement"], **outcome[found])
    for metric, figure in (("parity.difference", "largest_difference"), ("parity.cosine", "cosine")):
        if (value := outcome.get("parity", {}).get(figure)) is not None:
            yield _exact(metric, value)


def _estimates(outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    value, low, high = (float(outcome["estimate"][key]) for key in ("value_ms", "low_ms", "high_ms"))
    detail = outcome["estimate"]["detail"]
    yield {"metric": "latency.p50", "value": value, "low": low, "high": high, "detail": detail}


def timed(outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each figure of benchmark.outcome; what else is known beside it: "environment", and of a step the "subject"."""
    return _estimates(outcome) if "estimate" in outcome else _times(outcome)


def _times(outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Doubts go with the median of what ships: told of every other figure too, they would be read by nobody."""
    doubted = outcome.get("subject") != "teacher"
    samples = tuple(tuple(answer["samples_ns"]) for answer in outcome["answers"])
    for metric, values in timings(outcome["answers"]).items():
        more: dict[str, Any] = {}
        if metric == "latency.p50":
            more["samples"] = samples
            more["doubts"] = doubts(outcome["answers"], outcome["environment"].get("threads")) if doubted else ()
        yield {**_interval(metric, values), **more}
    if outcome["memory"]:
        peaks = [answer["peak_bytes"] for answer in outcome["memory"]]
        yield _exact("memory.peak", max(peaks), each=peaks)  # a peak is the largest that was seen


def _exact(metric: str, value: float, **detail: Any) -> dict[str, Any]:
    return {"metric": metric, "value": float(value), "low": float(value), "high": float(value), "detail": detail}


def _interval(metric: str, values: Sequence[float]) -> dict[str, Any]:
    value, low, high = interval(values)
    detail = {"processes": len(values), "each": list(values)}
    return {"metric": metric, "value": float(value), "low": float(low), "high": float(high), "detail": detail}


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
