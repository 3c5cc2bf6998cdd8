"""MiniLM-L6 at 128 tokens as others export it and as edgepack does: size of the file, and one inference.

    python benchmarks/bert.py                writes benchmarks/bert.md; nothing else may run meanwhile

fp32 by torch.onnx as it is, onnxruntime's own quantize_dynamic of that file, the XNNPACK lowering of ExecuTorch as it
is, and edgepack's files in fp32 and int8. Every file is timed in fresh processes, one after another, round after round,
so that drift of the machine hits all alike; the table gives the median of the processes' medians. The weights are those
of the published model, with a new head of five classes: neither size nor speed depends on what a head has learned.
"""

import statistics
import sys
import warnings
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from edgepack.compress.contract import Context
from edgepack.compress.stages import quantize
from edgepack.config.device import Controls, Quantization
from edgepack.config.plugins import choose, load
from edgepack.core import provenance
from edgepack.core.runtimes import runtime_of
from edgepack.core.units import DURATION, SIZE
from edgepack.measure import processes
from edgepack.measure.timing.protocol import TimingProtocol
from edgepack.models.candidate import Candidate

_ROUNDS, _THREADS = 5, (1, 2)
_PACKAGES = ("torch", "transformers", "torchao", "executorch", "onnx", "onnxruntime")


def _files(folder: Path) -> dict[str, Path]:
    data = choose("datasets", {"bbc_news": {"tokenizer": "all-MiniLM-L6-v2", "max_length": 128}})
    model = choose("models", {"huggingface": "all-MiniLM-L6-v2"})
    teacher = Candidate.start(model, data.module.describe(data.config))
    context = Context(
        data=data.module.load(data.config).for_stages(),
        task=load("tasks", "text_classification").task(None, teacher.signature),
        quantization=Quantization(),
        seed=0,
        teacher=None,
        emit=lambda event: None,
    )
    small = quantize.run(teacher.copy(), quantize.Config(mode="ptq"), context)
    files = {}
    for name, made in {"edgepack, fp32": teacher, "edgepack, int8": small}.items():
        for format in ("onnx", "executorch"):
            exporter = load("exporters", format)
            files[f"{name}, {exporter.RUNTIME}"] = path = folder / f"{name}{exporter.SUFFIX}"
            exporter.export(made, exporter.Config(), path)
    return {**_peers(teacher, folder), **files}


def _peers(teacher: Candidate, folder: Path) -> dict[str, Path]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from onnxruntime.quantization import quantize_dynamic

    plain, dynamic, lowered = (folder / name for name in ("plain.onnx", "dynamic.onnx", "plain.pte"))
    program = torch.export.export(teacher.module.eval(), teacher.example_inputs())
    exported: Any = torch.onnx.export(program, dynamo=True, verbose=False)
    exported.save(str(plain), external_data=False)
    quantize_dynamic(plain, dynamic)
    lowered.write_bytes(to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)
    return {
        "torch.onnx, fp32, onnxruntime": plain,
        "quantize_dynamic, int8, onnxruntime": dynamic,
        "to_edge_transform_and_lower, fp32, executorch": lowered,
    }


def _timed(files: dict[str, Path]) -> dict[tuple[str, int], float]:
    """Return milliseconds by name and number of threads."""
    found: dict[tuple[str, int], list[float]] = {(name, threads): [] for name in files for threads in _THREADS}
    for number in range(_ROUNDS):
        print(f"round {number + 1} of {_ROUNDS}", file=sys.stderr, flush=True)
        for name, threads in found:
            job = {"runtime": runtime_of(files[name].suffix), "file": str(files[name]), **TimingProtocol().job()}
            with closing(processes.Host(Controls(threads=threads))) as here:
                answer = here.run(job)
            found[name, threads].append(statistics.median(answer["samples_ns"]) * 1e-6)
    return {key: statistics.median(each) for key, each in found.items()}


def _page(files: dict[str, Path], times: dict[tuple[str, int], float]) -> str:
    slowest = {"onnxruntime": "torch.onnx, fp32, onnxruntime"}
    slowest["executorch"] = "to_edge_transform_and_lower, fp32, executorch"
    rows = []
    for name, path in files.items():
        base = slowest[name.rpartition(", ")[2]]
        size = path.stat().st_size
        cells = [name, f"{SIZE.format(size)}, {files[base].stat().st_size / size:.2f}x smaller"]
        for threads in _THREADS:
            ratio = times[base, threads] / times[name, threads]
            cells.append(f"{DURATION.format(times[name, threads])}, **{ratio:.2f}x**")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            "# MiniLM-L6 on one computer, as others export it and as edgepack does",
            "",
            f"One inference of 128 tokens, the median of {_ROUNDS} fresh processes; ratios are to what torch and",
            "ExecuTorch export by themselves, for the same runtime and as many threads.",
            "",
            f"| file | size | {' | '.join(f'threads: {threads}' for threads in _THREADS)} |",
            "|---|---|---|---|",
            *rows,
            "",
            "Command: `python benchmarks/bert.py`",
            "",
            f"Environment: {provenance.summary(*_PACKAGES)}.",
            "",
        ]
    )


def main() -> None:
    warnings.filterwarnings("ignore")
    with TemporaryDirectory() as folder:
        files = _files(Path(folder))
        Path(__file__).with_suffix(".md").write_text(_page(files, _timed(files)))


if __name__ == "__main__":
    main()
