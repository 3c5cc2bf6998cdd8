"""Runs one exported file on the device and prints one line of JSON. One file: the standard library, numpy, the runtime.

    python worker.py '{"runtime": "onnxruntime", "file": "m.onnx", "mode": "time", "threads": 1}'

mode     time       load, run once, warm up, then time every run
         memory     load and run in a process of its own, and tell how far its peak rose above the runtime alone
         predict    run every row of `inputs` (one .npy a model input) at batch 1, write the outputs to `output`
         delegates  tell what the runtime can hand a model to; no file is loaded
"""

import json
import os
import sys
import time
from typing import Any

Job = dict[str, Any]
_MS = 1e-6  # one nanosecond in milliseconds


class OnnxRuntime:
    """`run` takes a list of numpy arrays and gives the first output."""

    packages = ("onnxruntime",)

    def __init__(self, threads: int) -> None:
        import onnxruntime

        self.api, self.threads = onnxruntime, threads

    def delegates(self) -> list[str]:
        return list(self.api.get_available_providers())

    def load(self, file: str) -> None:
        options = self.api.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = self.api.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.inputs = self.session.get_inputs()
        self.specs = [(tuple(value.shape), _ONNX_TYPES[value.type]) for value in self.inputs]

    def bind(self, arrays: list[Any]) -> Any:
        return {value.name: array for value, array in zip(self.inputs, arrays, strict=True)}

    def run(self, bound: Any) -> Any:
        return self.session.run(None, bound)[0]

    def array(self, output: Any) -> Any:
        return output


_ONNX_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(uint8)": "uint8"}


class ExecuTorch:
    packages = ("executorch", "torch")

    def __init__(self, threads: int) -> None:
        import torch  # its libraries and types must be there before the runtime's own
        from executorch.extension.pybindings import _portable_lib  # isort: skip
        import executorch.kernels.quantized  # noqa: F401  (the kernel of int8 embedding tables)

        self.torch, self.api = torch, _portable_lib
        torch.set_num_threads(1)
        self.api._unsafe_reset_threadpool(threads)  # before the first load: afterwards it corrupts the heap

    def delegates(self) -> list[str]:
        return sorted(self.api._get_registered_backend_names())

    def load(self, file: str) -> None:
        self.program = self.api._load_program(file)  # kept: the method lives in its memory
        self.method = self.program.load_method("forward")
        meta = self.method.method_meta()
        tensors = [meta.input_tensor_meta(i) for i in range(meta.num_inputs())]
        self.specs = [(tuple(tensor.sizes()), _TORCH_TYPES[tensor.dtype()]) for tensor in tensors]

    def bind(self, arrays: list[Any]) -> Any:
        return [self.torch.from_numpy(array) for array in arrays]

    def run(self, bound: Any) -> Any:
        return self.method(bound)[0]

    def array(self, output: Any) -> Any:
        return output.numpy()


_TORCH_TYPES = {0: "uint8", 1: "int8", 3: "int32", 4: "int64", 6: "float32"}  # the order of c10::ScalarType

RUNTIMES: dict[str, Any] = {"onnxruntime": OnnxRuntime, "executorch": ExecuTorch}


def main(job: Job) -> Job:
    os.sched_setaffinity(0, job.get("cpus") or os.sched_getaffinity(0))
    runtime = RUNTIMES[job["runtime"]](job["threads"])
    if job["mode"] == "delegates":
        return {"delegates": runtime.delegates()}
    baseline = _memory("VmRSS") + _memory("VmSwap")
    _forget_peak()
    started = time.perf_counter_ns()
    runtime.load(job["file"])
    load = (time.perf_counter_ns() - started) * _MS
    result = {"load_ms": load, "versions": _versions(runtime.packages)}
    return {**result, **MODES[job["mode"]](runtime, job, baseline)}


def measure_time(runtime: Any, job: Job, _baseline: int) -> Job:
    bound = runtime.bind(_noise(runtime.specs))
    first = _timed(runtime, bound)
    _repeat(runtime, bound, seconds=job["warm_up_seconds"], least=5, most=job["most_runs"])
    samples = _repeat(runtime, bound, seconds=job["seconds"], least=job["least_runs"], most=job["most_runs"])
    return {"first_ms": first * _MS, "samples_ns": samples}


def measure_memory(runtime: Any, _job: Job, baseline: int) -> Job:
    bound = runtime.bind(_noise(runtime.specs))
    for _ in range(3):
        runtime.run(bound)
    peak = max(_memory("VmHWM"), _memory("VmRSS") + _memory("VmSwap"))  # zram hides pages from the high-water mark
    return {"peak_bytes": max(0, peak - baseline), "baseline_bytes": baseline}


def predict(runtime: Any, job: Job, _baseline: int) -> Job:
    import numpy

    columns = [numpy.load(file, mmap_mode="r", allow_pickle=False) for file in job["inputs"]]
    rows = range(len(columns[0]))
    outputs = [_row(runtime, [numpy.array(column[i : i + 1], order="C") for column in columns]) for i in rows]
    numpy.save(job["output"], numpy.concatenate(outputs), allow_pickle=False)
    return {"rows": len(outputs)}


MODES = {"time": measure_time, "memory": measure_memory, "predict": predict}


def _row(runtime: Any, arrays: list[Any]) -> Any:
    return runtime.array(runtime.run(runtime.bind(arrays))).copy()


def _timed(runtime: Any, bound: Any) -> int:
    started = time.perf_counter_ns()
    runtime.run(bound)
    return time.perf_counter_ns() - started


def _repeat(runtime: Any, bound: Any, seconds: float, least: int, most: int) -> list[int]:
    """Time runs until there are `least` of them and `seconds` have gone, or `most` of them."""
    samples: list[int] = []
    end = time.perf_counter_ns() + seconds * 1e9
    while len(samples) < most and (len(samples) < least or time.perf_counter_ns() < end):
        samples.append(_timed(runtime, bound))
    return samples


def _noise(specs: list[tuple[tuple[int, ...], str]]) -> list[Any]:
    import numpy

    random = numpy.random.default_rng(0)
    return [
        random.random(shape, dtype="float32") if dtype == "float32" else numpy.ones(shape, dtype)
        for shape, dtype in specs
    ]


def _memory(field: str) -> int:
    """A line of /proc/self/status in bytes; 0 where the system has none."""
    try:
        with open("/proc/self/status") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith(field)), 0)
    except OSError:
        return 0


def _forget_peak() -> None:
    """Start the high-water mark anew: importing a runtime may have peaked above what the model needs."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in packages}


if __name__ == "__main__":
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # runtimes print; the answer must be the only line of output
    print(json.dumps(main(json.loads(sys.argv[1]))), file=answer, flush=True)
