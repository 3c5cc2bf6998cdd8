"""Define the jobs that can run on a loaded file."""

import time
from collections.abc import Sequence
from typing import Any

from edgepack.measure.runtimes.contract import Refused, Runtime, Spec
from edgepack.measure.worker import generation, system

Job = dict[str, Any]
_MS = 1e-6  # one nanosecond in milliseconds


def measure_time(runtime: Runtime, job: Job, _baseline: int) -> Job:
    inputs = noise(_fixed(runtime.specs, job), whole=job.get("whole", 1))
    bound = runtime.bind([*inputs, *generation.states(runtime)])
    before, others = system.state(), system.others_now()
    first = _timed(runtime, bound)
    limits = {"most": job["most_runs"], "most_seconds": job["most_seconds"]}
    repeat(runtime, bound, seconds=job["warm_up_seconds"], least=5, **limits)
    samples = repeat(runtime, bound, seconds=job["seconds"], least=job["least_runs"], **limits)
    tokens = {}
    if runtime.states:  # what was run is a whole window: now its last token alone
        last = runtime.bind(_last(runtime, inputs))
        tokens = {"token_ns": repeat(runtime, last, seconds=job["seconds"], least=job["least_runs"], **limits)}
    contention = system.share(others, system.others_now())
    after = {"before": before, "after": system.state(), "blind": system.blind(job, before)}
    return {"first_ms": first * _MS, "samples_ns": samples, **tokens, "cpu_contention": contention, **after}


def _last(runtime: Runtime, inputs: list[Any]) -> list[Any]:
    """Return the last token of a window, with what is kept of those before."""
    [tokens] = inputs
    return [tokens[:, -1:].copy(), *generation.states(runtime, tokens.shape[1] - 1)]


def measure_memory(runtime: Runtime, job: Job, baseline: int) -> Job:
    inputs = noise(_fixed(runtime.specs, job), whole=job.get("whole", 1))
    bound = runtime.bind([*inputs, *generation.states(runtime)])
    for _ in range(3):
        runtime.run(bound)
    if runtime.states:
        runtime.run(runtime.bind(_last(runtime, inputs)))
    resident = system.memory("VmRSS") + system.memory("VmSwap")
    peak = max(system.memory("VmHWM"), resident)  # zram hides pages from the high-water mark
    return {"peak_bytes": max(0, peak - baseline), "baseline_bytes": baseline}


def predict(runtime: Runtime, job: Job, _baseline: int) -> Job:
    import numpy

    columns = [numpy.load(file, mmap_mode="r", allow_pickle=False) for file in job["inputs"]]
    shapes = [shape for _, shape, _ in _given(runtime.specs, job)]
    if len(columns) != len(shapes):
        raise Refused(f"got {len(columns)} inputs, but the file has {len(shapes)}")
    rows = range(len(columns[0]) if columns else job["rows"])  # a file without inputs is run as often
    outputs = [_row(runtime, [_input(columns[n], i, shape) for n, shape in enumerate(shapes)]) for i in rows]
    with open(job["output"], "wb") as file:
        numpy.savez(file, *[_joined([row[i] for row in outputs]) for i in range(len(outputs[0]))])
    return {"rows": len(outputs)}


def generate(runtime: Runtime, job: Job, _baseline: int) -> Job:
    import numpy

    prompts = numpy.load(job["inputs"][0], allow_pickle=False)
    return {"tokens": [generation.greedy(runtime, prompt, job["count"]) for prompt in prompts]}


def describe(runtime: Runtime, _job: Job, _baseline: int) -> Job:
    of = {"inputs": runtime.specs, "states": runtime.states}
    return {
        kind: [{"name": name, "shape": shape, "dtype": dtype} for name, shape, dtype in specs]
        for kind, specs in of.items()
    }


MODES = {
    "time": measure_time,
    "memory": measure_memory,
    "predict": predict,
    "generate": generate,
    "describe": describe,
}


def _row(runtime: Runtime, arrays: list[Any]) -> list[Any]:
    found = runtime.arrays(runtime.run(runtime.bind([*arrays, *generation.states(runtime)])))
    return [array.copy() for array in generation.outputs(runtime, found)[0]]


def _input(column: Any, i: int, shape: tuple[Any, ...]) -> Any:
    import numpy

    return numpy.array(column[i] if column.shape[1:] == shape else column[i : i + 1], order="C")


def _joined(outputs: Sequence[Any]) -> Any:
    """Concatenate one output of all rows; flattened first if their shapes differ from row to row."""
    import numpy

    parts = [numpy.atleast_1d(output) for output in outputs]
    alike = len({part.shape[1:] for part in parts}) == 1
    return numpy.concatenate(parts if alike else [part.ravel() for part in parts])


def _timed(runtime: Runtime, bound: Any) -> int:
    started = time.perf_counter_ns()
    runtime.run(bound)
    return time.perf_counter_ns() - started


def repeat(runtime: Runtime, bound: Any, *, seconds: float, least: int, most: int, most_seconds: float) -> list[int]:
    """Time runs until there are `least` of them and `seconds` have passed, or until there are `most`.

    Three suffice if more would take longer than `most_seconds`.
    """
    samples: list[int] = []
    start = now = time.perf_counter_ns()
    while len(samples) < most and (len(samples) < least or now < start + seconds * 1e9):
        if len(samples) >= 3 and now > start + most_seconds * 1e9:
            break
        samples.append(_timed(runtime, bound))
        now = time.perf_counter_ns()
    return samples


def _fixed(specs: list[Spec], job: Job) -> list[Spec]:
    """Return every input with a fixed shape. Raises Refused where one stays dynamic."""
    fixed = _given(specs, job)
    for name, shape, _ in fixed:
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise Refused(f"the shape of {name} is dynamic: {', '.join(map(str, shape))}")
    return fixed


def _given(specs: list[Spec], job: Job) -> list[Spec]:
    """Apply the `shapes` of the job to inputs."""
    given: dict[str, list[int]] = job.get("shapes", {})
    return [(name, tuple(given.get(name, shape)), dtype) for name, shape, dtype in specs]


def noise(specs: list[Spec], seed: int = 0, whole: int = 1) -> list[Any]:
    """Return values from 0 to 1 for float inputs; ones for integer inputs, a valid index for nearly any table."""
    import numpy

    random = numpy.random.default_rng(seed)
    return [
        random.random(shape, "float32").astype(dtype) if dtype.startswith("float") else numpy.full(shape, whole, dtype)
        for _, shape, dtype in specs
    ]
