"""Builds of every kind that a report must get right."""

import io
import json
import math
from typing import Any

import pytest
from factories import artifact, build, measurement, record, verdict

from edgepack.cli.views import verdicts
from edgepack.config import plugins
from edgepack.records.build import Build
from edgepack.records.file_contents import Contents, Stored
from edgepack.records.measurement import Measurement
from edgepack.records.training import Epoch, TrainingRecord
from edgepack.records.verdict import Verdict

EVERY_VERDICT = (
    verdict("size", 450e3),
    verdict("latency.p50", 9.6, "8 ms"),
    verdict("latency.p90", 8.0, "8 ms", low=7.0, high=9.0),
    verdict("memory.peak", None, "1 MB"),
    verdict("size", 450e3).model_copy(update={"outcome": "waived", "reason": "until 2027-01-31: the old app"}),
)
AWKWARD = """<script>alert(1)</script> | "it's" & ]]> `code` *b* [x](y) #1 ünï 🙂"""
CONTROLS = "a\x00b\x1b[31mc\x85d\r\ne"
LONG = "a_very_long_name_without_any_place_to_break_" * 4
ENVIRONMENT = {
    "runner": "host",
    "cpu": "a processor",
    "features": "fpu vme",
    "threads": 2,
    "kernel": "6.1",
    "evidence": "measured",
    "versions": {"onnxruntime": "1.32.0"},
}


def _awkward() -> Build:
    return build(
        device={"id": "board", "name": AWKWARD},
        ledger=(record("train", notes=(AWKWARD, CONTROLS), trainings=(_awkward_training(),)),),
        verdicts=(
            verdict("size", 9e9).model_copy(update={"place": f"recipes/{AWKWARD}.yaml:3", "reason": CONTROLS}),
            verdict("memory.peak", None, "1 MB").model_copy(update={"artifact": LONG, "reason": AWKWARD}),
        ),
        measurements=(measurement(doubts=(AWKWARD,)), measurement("latency.p50", 2.0, artifact=LONG)),
        not_run={LONG: AWKWARD},
    )


def _awkward_training() -> TrainingRecord:
    """Nothing is known but scores that are all the same."""
    return TrainingRecord(doing=AWKWARD, kept=0, epochs=tuple(Epoch(epoch=n, score=0.0, loss=0.0) for n in range(2)))


def _smallest() -> Build:
    return build(
        ledger=(record(bytes=0, macs=0, seconds=0, accuracy=0.0),),
        artifacts=(artifact(bytes=0, contents=Contents(tensors=(), operators={})),),
        measurements=(measurement(value=0), measurement("latency.p50", 0.0), measurement("accuracy", 0.0)),
        verdicts=(verdict("size", 0, "0 kB"), verdict("parity", 0.0, "100 %")),
        provenance={},
    )


def full() -> Build:
    """Three formats with their teachers: one timed here, one emulated, one that cannot be run."""
    sizes = (44_700_000, 44_700_000, 11_200_000, 2_800_000, 468_000, 133_000)
    scores = (0.10, 0.978, 1.0, 0.996, 0.991, 0.993)
    names = ("model", "train", "distill", "prune", "factorize", "quantize")
    formats = ("executorch", "onnx", "a_runtime_of_somebody_elses")
    measured = [
        *_measured("executorch", 0.054, "measured"),
        *_measured("onnx", 0.088, "emulated"),
        *_measured("teacher (executorch)", 1.13, "measured"),
        *_measured("teacher (onnx)", 0.577, "emulated"),
    ]
    return build(
        exit_code=1,
        ledger=tuple(
            record(
                name,
                bytes=size,
                accuracy=score,
                parameters=size // 4,
                macs=size // 3,
                notes=(f"{name} did well",),
                trainings=_trainings(name),
            )
            for name, size, score in zip(names, sizes, scores, strict=True)
        ),
        artifacts=(
            *(artifact(each, bytes=166_000, contents=_contents()) for each in formats),
            *(artifact(each, subject="teacher", bytes=44_700_000) for each in formats),
        ),
        measurements=tuple(measured),
        not_run={formats[-1]: "its runtime is not installed"},
        verdicts=(
            *(_emulated(each) if each.metric.startswith("latency") else each for each in EVERY_VERDICT),
            _emulated(verdict("accuracy", 0.978, "95 %")),
            _emulated(verdict("accuracy", 0.94, "95 %")),
            verdict("latency.p50", None, "8 ms").model_copy(
                update={"artifact": formats[-1], "reason": "not run here: its runtime is not installed"}
            ),
        ),
    )


def _trainings(stage: str) -> tuple[TrainingRecord, ...]:
    """Two cuts of prune, one training of the others that train; quantize's losses are unknown but for the last."""
    cuts = [f"recovering after cut {n} of 2" for n in (1, 2)] if stage == "prune" else [f"training in {stage}"]
    known = [0.25, 0.7, 0.9, 0.95, 0.97, 0.965, 0.981, 0.978]
    epochs = tuple(
        Epoch(
            epoch=n,
            score=score,
            validation_loss=None if stage == "quantize" and n < 7 else 2.3 * 0.6**n + 0.01 * n,
            loss=2.3 * 0.5**n if n and stage != "quantize" else None,
            learning_rate=1e-3 if n else None,
            samples_per_second=1234.5 + n if n else None,
        )
        for n, score in enumerate(known)
    )
    each = (TrainingRecord(doing=doing, kept=6, epochs=epochs) for doing in cuts)
    return tuple(each) if stage in ("train", "prune", "quantize") else ()


def _emulated(of: Verdict) -> Verdict:
    return of.model_copy(update={"evidence": "emulated"})


def _measured(label: str, p50: float, evidence: str) -> list[Measurement]:
    facts: dict[str, Any] = {"artifact": label, "evidence": evidence, "environment": ENVIRONMENT}
    each = [p50 * (1 + 0.01 * n) for n in range(-3, 4)]
    samples = tuple(tuple(_spread(middle)) for middle in each)
    size = 44_700_000.0 if "teacher" in label else 166_000.0
    return [
        measurement("size", size, artifact=label),
        measurement("accuracy", 0.984 if "teacher" in label else 0.978, **facts),
        measurement(
            "latency.p50",
            p50,
            low=each[0],
            high=each[-1],
            samples=samples,
            detail={"each": each, "processes": 7},
            **facts,
        ),
        measurement("latency.p90", p50 * 1.2, low=p50, high=p50 * 1.5, doubts=("processes differ by 12%",), **facts),
    ]


def _spread(middle_ms: float) -> list[float]:
    """Sixty-four inferences around a time, in nanoseconds, some of them late."""
    return [middle_ms * 1e6 * (1 + 0.03 * math.sin(n) + (1.5 if n % 31 == 30 else 0)) for n in range(64)]


def _contents() -> Contents:
    tensors = [Stored(layer=f"encoder.layer{n}.attention.query", dtype="int8", bytes=1000 * n) for n in range(1, 17)]
    return Contents(
        tensors=(*tensors, Stored(layer="head", dtype="float32", bytes=4_000)),
        operators={"quantize": 2},
        delegated={"XnnpackBackend": {"Conv2d": 19, "Add": 8}},
        arena_bytes=4210,
    )


BUILDS = {
    "passed": build(),
    "everything": full(),
    "every verdict": build(verdicts=EVERY_VERDICT, exit_code=1),
    "no budgets": build(verdicts=()),
    "failed early": build(
        exit_code=5,
        error="prune failed\n  no channels",
        ledger=(),
        artifacts=(),
        measurements=(),
        verdicts=(),
        bundle="",
    ),
    "failed half way": build(
        exit_code=4, error=f"the board does not respond: {AWKWARD}", verdicts=(), measurements=(), bundle=""
    ),
    "not finished": build(exit_code=None, finished_at=None, verdicts=()),
    "interrupted": build(exit_code=130, error="interrupted"),
    "awkward": _awkward(),
    "zeros": _smallest(),
}


EVERY_BUILD = pytest.mark.parametrize("name", BUILDS)
LOUD = full()


def rendered(report: str, of: Build) -> str:
    text: str = plugins.load("reports", report).render(of)
    return text


def on_console(of: Build) -> str:
    stream = io.StringIO()
    verdicts.show(of, stream, "dist/tiny")
    verdicts.ledger(of, stream)
    return stream.getvalue()


def sarif_of(of: Build) -> dict[str, Any]:
    log = json.loads(rendered("sarif", of))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    found: dict[str, Any] = run
    return found
