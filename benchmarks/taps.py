"""How much of a training step goes into taps of convolutions that meet padding only: see compress/training/taps.py.

python benchmarks/taps.py            writes benchmarks/taps.md; nothing else may run meanwhile
"""

import sys
from pathlib import Path

import torch
from numerics import BATCH, MODELS, ROUNDS, STEPS, convolutional, environment, time_alternately, training_step

from edgepack.compress.training.numerics import numerics, taps
from edgepack.core import provenance


def main() -> None:
    torch.set_num_threads(provenance.threads())
    rows = [_row(name, config) for name, config in MODELS.items()]
    page = [
        "# What training gains by leaving out taps that meet padding only",
        "",
        f"Time of a step of {BATCH} samples of 32 x 32 pixels without these taps, relative to all of them: median of",
        f"{ROUNDS} interleaved rounds of {STEPS} steps, in the layout that training uses.",
        "",
        "| model | a step with all taps | without |",
        "|---|---|---|",
        *rows,
        "",
        "Command: `python benchmarks/taps.py`",
        "",
        environment(),
        "",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(page))


def _row(name: str, config: dict[str, str]) -> str:
    make, inputs = convolutional(config)
    step = training_step(make, inputs, numerics(make()))
    seconds, (_, without) = time_alternately([step, taps.used_only()(training_step(make, inputs, numerics(make())))])
    row = f"| {name} | {seconds * 1e3:.0f} ms | {without:.2f} |"
    print(row, file=sys.stderr, flush=True)
    return row


if __name__ == "__main__":
    main()
