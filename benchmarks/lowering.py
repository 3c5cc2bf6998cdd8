"""Time to write a .pte with and without `light_tracing`: see export/formats/executorch/tracing.py.

python benchmarks/lowering.py            writes benchmarks/lowering.md; nothing else may run meanwhile
"""

import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from numerics import SIGNATURE, environment

from edgepack.compress.stages.quantize.capture import capture
from edgepack.compress.stages.quantize.contract import Scheme
from edgepack.compress.stages.quantize.convert import converted
from edgepack.compress.stages.quantize.observers import prepare
from edgepack.config.plugins import choose
from edgepack.core import provenance
from edgepack.export.formats import executorch
from edgepack.export.formats.executorch import tracing
from edgepack.models.candidate import Candidate

_ROUNDS = 3
_MODELS = ("resnet18", "mobilenet_v2", "mobilenet_v3_small")


def main() -> None:
    torch.set_num_threads(provenance.threads())
    rows = [_row(name, form) for name in _MODELS for form in ("fp32", "int8")]
    page = [
        "# Time to write a .pte, with and without light tracing",
        "",
        "Relative to the same export without `light_tracing`, which skips passes of XNNPACK that find nothing too:",
        f"the median of {_ROUNDS} rounds, after one that is not counted. Random weights; equal files, or it stops.",
        "",
        "| model | without | with |",
        "|---|---|---|",
        *rows,
        "",
        "Command: `python benchmarks/lowering.py`",
        "",
        environment(),
        "",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(page))


def _row(name: str, form: str) -> str:
    made = Candidate.start(choose("models", {"torchvision": name}), SIGNATURE)
    made.module.eval()
    if form == "int8":
        made = _quantized(made)
    rounds = [_both(made) for _ in range(1 + _ROUNDS)][1:]
    seconds = statistics.median(plain for plain, _ in rounds)
    row = f"| {name}, {form} | {seconds:.1f} s | {statistics.median(light / plain for plain, light in rounds):.2f} |"
    print(row, file=sys.stderr, flush=True)
    return row


def _quantized(made: Candidate) -> Candidate:
    observed = prepare(capture(made, ()), Scheme(), training=False)
    with torch.no_grad():
        observed(torch.randn(4, *SIGNATURE.inputs[0].shape))
    return Candidate(module=converted(observed), factory=made.factory, form="exported")


def _both(made: Candidate) -> tuple[float, float]:
    """Return the seconds without and with light tracing."""
    with patch.object(tracing, "light_tracing", nullcontext):
        plain, slow = _timed(made)
    light, fast = _timed(made)
    if light != plain:
        raise SystemExit("the files differ")
    return slow, fast


def _timed(made: Candidate) -> tuple[bytes, float]:
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        executorch.export(made, executorch.Config(), Path(folder) / "model.pte")
        return (Path(folder) / "model.pte").read_bytes(), time.perf_counter() - start


if __name__ == "__main__":
    main()
