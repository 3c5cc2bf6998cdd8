"""One exported file, whoever made it, timed on a device; or two of them in turns.

found = bench(Path("model.onnx"), load_device("host"))
found.measurements[0].value, pair(Path("a.onnx"), Path("b.onnx"), load_device("host")).ratio
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgepack.config.budget_reading import read_budgets
from edgepack.config.budgets import Budget
from edgepack.config.device import Controls, Device
from edgepack.config.document import Document
from edgepack.core import order_statistics
from edgepack.core.errors import AnswerError, DeviceError, RecipeError, RefusedError
from edgepack.core.events import Emit, StepProgress
from edgepack.core.files import file_digest
from edgepack.core.frozen import Frozen
from edgepack.core.metrics import METRICS
from edgepack.core.runtimes import RUNTIMES, runtime_of
from edgepack.judge.gate import compare, judge
from edgepack.measure import evaluate, processes
from edgepack.measure.contract import Connection, connected, lacking
from edgepack.measure.evaluate import ROUNDING
from edgepack.measure.input_shapes import fixed, too_large
from edgepack.measure.runtimes.contract import Spec
from edgepack.measure.timing import figures as timing_figures
from edgepack.measure.timing import protocol as timing_protocol
from edgepack.measure.timing.figures import Answers, Estimated, Timed, readings
from edgepack.measure.timing.protocol import TimingProtocol
from edgepack.measure.worker import modes
from edgepack.models.weights import file_kinds
from edgepack.records.measurement import Measurement
from edgepack.records.verdict import Verdict

if TYPE_CHECKING:
    import numpy

    Array = numpy.typing.NDArray[Any]


_ROWS = 3  # random samples whose outputs are checked before timing
_METRICS = ("size", *(name for name, metric in METRICS.items() if metric.within == "device"))
_LOCATION = b"\n\x08location\x12"  # name of a tensor's entry for its external data file


class Bench(Frozen):
    """Results for one file. `device` is the id of the profile, `inputs` the shapes used for timing."""

    file: str
    device: str
    inputs: dict[str, tuple[int, ...]] = {}
    measurements: tuple[Measurement, ...]
    verdicts: tuple[Verdict, ...] = ()


class Pair(Frozen):
    """Two files timed in alternating runs. `ratio` is the second latency / the first, with a 95 % interval."""

    files: tuple[Bench, Bench]
    ratio: float
    low: float
    high: float

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return ()


def read_limits(texts: Iterable[str]) -> tuple[Budget, ...]:
    """Return budgets from texts: `latency.p50=2ms`. Raises ConfigError, also for metrics that only builds have."""
    document = Document(file="--budget", data={}, lines={(): 0})
    found: list[Budget] = []
    for text in texts:
        metric, _, limit = text.partition("=")
        found += read_budgets(document, {metric: limit})
    for budget in found:
        if budget.metric not in _METRICS:
            message = f"bench measures {', '.join(_METRICS)}, not {budget.metric}: put this budget into a recipe"
            document.problem(("budgets", budget.metric), message)
    document.raise_problems()
    return tuple(found)


def bench(
    file: Path,
    device: Device,
    *,
    budgets: Sequence[Budget] = (),
    shapes: Mapping[str, Sequence[int]] = {},
    emit: Emit = lambda event: None,
) -> Bench:
    """Check the outputs of a file, time it until every budget is decided, then measure its memory.

    Raises RecipeError if it is not an exported file, DeviceError, and AnswerError if outputs on the device differ from
    this computer.
    """
    if "time" not in device.evidence:
        raise DeviceError(f"{device.name} cannot be timed: its runner is {device.runner.name}", "use another device")
    with connected(device) as connection:
        job = _job(file, device, connection, budgets)
        [specs] = _inputs([job], shapes)
        emit(StepProgress(doing="checking its outputs", done=0, total=1))
        _check_answers(job, specs, connection)
        progress = _progress("timing in fresh processes", emit)

        def decided(taken: tuple[Answers, ...]) -> bool:
            figures = timing_figures.timings(taken[0])
            mine = [each for each in budgets if each.metric in figures]
            intervals = (order_statistics.interval(figures[each.metric])[1:] for each in mine)
            return all(
                compare(each.bound, each.limit, *found) != "inconclusive"
                for each, found in zip(mine, intervals, strict=True)
            )

        if device.evidence["time"] == "estimated":
            timed = Timed(estimate=Estimated.model_validate(connection.run(job)))
        else:
            [answers] = timing_protocol.time_alternately(connection.run, [job], [[]], decided, progress)
            timed = Timed(answers=answers, memory=timing_protocol.peaks(connection.run, device.evidence, job))
        return _found(job, specs, device, connection, timed, budgets)


def pair(
    first: Path,
    second: Path,
    device: Device,
    *,
    shapes: Mapping[str, Sequence[int]] = {},
    emit: Emit = lambda event: None,
) -> Pair:
    """Time two files in alternating runs until it is decided which one is faster, or the limit of runs is reached."""
    if device.evidence.get("time") != "measured":
        raise DeviceError(
            f"{device.name} cannot be timed: comparing two files needs measurements", "use another device"
        )
    with connected(device) as connection:
        jobs = [_job(file, device, connection, ()) for file in (first, second)]
        inputs = _inputs(jobs, shapes)
        for job, specs in zip(jobs, inputs, strict=True):
            emit(StepProgress(doing=f"checking the outputs of {job['file']}", done=0, total=1))
            _check_answers(job, specs, connection)
        taken = timing_protocol.time_pair(connection.run, jobs, _progress("timing in alternating runs", emit))
        files = [
            _found(job, specs, device, connection, Timed(answers=answers), ())
            for job, specs, answers in zip(jobs, inputs, taken, strict=True)
        ]
    ratio, low, high = order_statistics.interval(timing_protocol.ratios(*taken))
    return Pair(files=(files[0], files[1]), ratio=ratio, low=low, high=high)


def _job(file: Path, device: Device, connection: Connection, budgets: Sequence[Budget]) -> dict[str, Any]:
    runtime = runtime_of(file.suffix.lower())
    if not runtime:
        known = ", ".join(sorted(suffix for each in RUNTIMES.values() for suffix in each.suffixes))
        raise RecipeError(f"{file} is not an exported file: its name must end in one of {known}")
    _check_readable(file)
    _check_whole(file)
    if runtime not in connection.facts["versions"]:
        raise lacking(device, runtime, file.name)
    protocol = TimingProtocol.of(budget.metric for budget in budgets)
    return {**protocol.job(), **device.controls.job(), "runtime": runtime, "file": str(file), "shapes": {}}


def _check_readable(file: Path) -> None:
    if not file.is_file():
        raise RecipeError(f"{file} is a folder" if file.is_dir() else f"{file} not found")
    try:
        problem = file_kinds.stand_in(file)
        foreign = file.suffix.lower() == ".pte" and not file_kinds.is_executorch(file)
    except OSError as error:
        raise RecipeError(f"cannot read {file}: {error.strerror}") from None
    if problem:
        raise RecipeError(f"{file} is {problem}")
    if foreign:
        raise RecipeError(
            f"{file} is not a .pte: it does not start like an ExecuTorch file", "check the format of the file"
        )


def _check_whole(file: Path) -> None:
    """Raises RecipeError if an ONNX file has external weights: these would be neither measured nor sent along."""
    if file.suffix.lower() == ".onnx" and _holds(file, _LOCATION) and (beside := _external(file)):
        hint = "save it as one file: torch.onnx.export(..., external_data=False), or onnx.save(onnx.load(FILE), OTHER)"
        raise RecipeError(f"{file} has weights in another file, {beside}, which bench does not support", hint)


def _holds(file: Path, words: bytes) -> bool:
    """Return whether a file contains these bytes, without reading it into memory."""
    if file.stat().st_size == 0:  # an empty file cannot be mapped
        return False
    with file.open("rb") as content, mmap(content.fileno(), 0, access=ACCESS_READ) as mapped:
        return mapped.find(words) >= 0


def _external(file: Path) -> str:
    """Return the file of the first external weights, or "". Unreadable files are left to the runtime."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(file, load_external_data=False).graph
    except DecodeError:
        return ""
    outside = (each for each in _tensors(graph) if each.data_location == onnx.TensorProto.EXTERNAL)
    entries = (entry for tensor in outside for entry in tensor.external_data)
    return next((str(entry.value) for entry in entries if entry.key == "location"), "")


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield the tensors of an ONNX graph, and of the graphs inside its operators."""
    yield from graph.initializer
    for attribute in (each for node in graph.node for each in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _check_answers(job: dict[str, Any], specs: Sequence[Spec], connection: Connection) -> None:
    """Raises AnswerError if outputs on random input differ between device and this computer, or are NaN or Inf."""
    import numpy

    with closing(processes.Host(Controls(threads=1))) as here, _by_the_user(job):
        ours = _answers_here(job, specs, here)
    theirs = ours if isinstance(connection, processes.Host) else _answers(job, specs, connection)
    if not numpy.isfinite(ours).all():
        raise AnswerError(f"{job['file']} returned NaN or Inf on random input", "check its weights and inputs")
    otherwise = f"{job['file']}: outputs on the device differ from this computer"
    hint = "its runtime may have another version, or be broken"
    if theirs.shape != ours.shape:
        raise AnswerError(f"{otherwise}: {theirs.size} values, but {ours.size} here", hint)
    reach, far = (float(numpy.abs(each).max(initial=0.0)) for each in (ours, ours - theirs))
    if not far <= ROUNDING * reach:
        raise AnswerError(f"{otherwise}: outputs up to {reach:.3g} differ by {far:.3g}", hint)


def _answers_here(job: dict[str, Any], specs: Sequence[Spec], here: processes.Host) -> "Array":
    """Return the outputs on this computer. Integer inputs are ones, or zeros (noted in the job) if it rejects ones."""
    try:
        return _answers(job, specs, here)
    except RefusedError as error:
        if not any(dtype.startswith(("int", "uint")) for _, _, dtype in specs):
            raise
        try:
            job["whole"] = 0
            return _answers(job, specs, here)
        except RefusedError:
            raise error from None


@contextmanager
def _by_the_user(job: dict[str, Any]) -> Iterator[None]:
    """Turn a runtime's refusal on this computer into a RecipeError: file or shapes are wrong, no retry helps."""
    try:
        yield
    except RefusedError as error:
        hint = (
            f"check that the file is complete and made for this version of {job['runtime']}"
            if "it does not" in error.message
            else ""
        )
        raise RecipeError(error.message, f"check the shapes; {hint}" if job["shapes"] and hint else hint) from error


@contextmanager
def _noise(job: dict[str, Any], specs: Sequence[Spec]) -> Iterator[dict[str, Any]]:
    """Give a job that runs a few rows of random input, each a whole input; its files are removed afterwards."""
    import numpy

    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"input-{i}.npy" for i in range(len(specs))]
        try:
            rows = [modes.noise([*specs], seed, job.get("whole", 1)) for seed in range(_ROWS)]
            for path, arrays in zip(paths, zip(*rows, strict=True), strict=True):
                numpy.save(path, numpy.stack(arrays), allow_pickle=False)
        except MemoryError:
            raise too_large(job["file"], specs) from None
        described = {key: job[key] for key in ("runtime", "file", "shapes")}
        names = [str(path) for path in paths]
        yield {**described, "mode": "predict", "rows": _ROWS, "inputs": names, "output": f"{folder}/output.npz"}


def _answers(job: dict[str, Any], specs: Sequence[Spec], connection: Connection | processes.Host) -> "Array":
    with _noise(job, specs) as question:
        connection.run(question)
        answers, *_ = evaluate.answers(Path(question["output"]))
    return answers.astype("float64")  # differences of bytes would wrap around, and booleans have none


def _inputs(jobs: Sequence[dict[str, Any]], shapes: Mapping[str, Sequence[int]]) -> list[list[Spec]]:
    """Return the inputs of each file with fixed shapes; given shapes are added to the job of their file.

    Raises RecipeError for wrong shapes, DeviceError if memory is too small for them.
    """
    with closing(processes.Host(Controls(threads=1))) as here:
        inputs = [_described(job, here) for job in jobs]
    for job, specs in zip(jobs, inputs, strict=True):
        job["shapes"] = {name: [*shapes[name]] for name, _, _ in specs if name in shapes}
    return fixed([Path(job["file"]) for job in jobs], inputs, shapes)


def _described(job: dict[str, Any], here: processes.Host) -> list[Spec]:
    question = {**{key: job[key] for key in ("runtime", "file", "shapes")}, "mode": "describe"}
    with _by_the_user(job):
        inputs = here.run(question)["inputs"]
    return [(each["name"], tuple(each["shape"]), each["dtype"]) for each in inputs]


def _progress(doing: str, emit: Emit) -> Callable[[int, int], None]:
    return lambda done, total: emit(StepProgress(doing=doing, done=done, total=total))


def _versions(job: dict[str, Any], connection: Connection) -> dict[str, str]:
    return {job["runtime"]: connection.facts["versions"][job["runtime"]]}


def _found(
    job: dict[str, Any],
    specs: Sequence[Spec],
    device: Device,
    connection: Connection,
    timed: Timed,
    budgets: Sequence[Budget],
) -> Bench:
    file, evidence = Path(job["file"]), device.evidence["time"]
    about: dict[str, Any] = {
        "artifact": file.name,
        "sha256": file_digest(file),
        "evidence": evidence,
        "taken_at": round(time.time(), 3),
        "environment": {**connection.facts, **device.controls.job(), "versions": _versions(job, connection)},
    }
    size = float(file.stat().st_size)
    weighed = Measurement(**{**about, "evidence": "measured"}, metric="size", value=size, low=size, high=size)
    threads = about["environment"].get("threads")
    figures = [Measurement.of(each, about) for each in readings(timed, threads=threads)]
    measurements = (weighed, *figures)
    return Bench(
        file=str(file),
        device=device.id,
        inputs={name: tuple(shape) for name, shape, _ in specs},
        measurements=measurements,
        verdicts=judge(budgets, [file.name], measurements),
    )
