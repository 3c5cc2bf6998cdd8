"""The figures behind the rule in compress/training/numerics.py: the speed of a training step by layout and precision.

    python benchmarks/numerics.py            writes benchmarks/numerics.md; nothing else may run meanwhile

Every model is trained in all four ways in turn, round after round, so that drift of the machine hits all alike; the
table gives the median over rounds of each way's time divided by the default's in the same round.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from edgepack.compress.stages.quantize.capture import capture
from edgepack.compress.stages.quantize.contract import Scheme
from edgepack.compress.stages.quantize.observers import prepare
from edgepack.compress.training.numerics import Numerics, numerics
from edgepack.config.plugins import choose
from edgepack.core import provenance
from edgepack.core.signature import Signature, TensorSpec
from edgepack.models.candidate import Candidate, Factory

ROUNDS, STEPS, BATCH = 7, 4, 64
_WAYS = tuple(
    Numerics(channels_last=layout, precision=precision) for precision in ("fp32", "bf16") for layout in (False, True)
)
MODELS = {
    "ResNet-18": {"torchvision": "resnet18"},
    "ResNet-18, half width": {"torchvision": "resnet18", "width": "50 %"},
    "MobileNetV2": {"torchvision": "mobilenet_v2"},
    "MobileNetV3-small": {"torchvision": "mobilenet_v3_small"},
    "EfficientNet-B0": {"torchvision": "efficientnet_b0"},
    "ShuffleNetV2 x0.5": {"torchvision": "shufflenet_v2_x0_5"},
}
SIGNATURE = Signature(
    inputs=(TensorSpec(name="input", shape=(3, 32, 32)),), labels=tuple(str(label) for label in range(10))
)


def main() -> None:
    torch.set_num_threads(provenance.threads())
    rows = [_row(name, *convolutional(config)) for name, config in MODELS.items()]
    rows.append(_row("ResNet-18, half width, in QAT", *_quantized(MODELS["ResNet-18, half width"])))
    rows.append(_row("Transformer encoder, 4 x 256, 64 tokens", *_encoder()))
    rows.append(_row("MLP, 3 x 1024", *_mlp()))
    Path(__file__).with_suffix(".md").write_text(_page(rows))


Make = Callable[[], nn.Module]


def convolutional(config: dict[str, str]) -> tuple[Make, torch.Tensor]:
    return lambda: Factory.of(choose("models", config), SIGNATURE).build(), torch.randn(BATCH, 3, 32, 32)


def _quantized(config: dict[str, str]) -> tuple[Make, torch.Tensor]:
    factory = Factory.of(choose("models", config), SIGNATURE)
    graph = capture(Candidate(module=factory.build(), factory=factory), ())
    return lambda: prepare(graph, Scheme(), training=True), torch.randn(BATCH, 3, 32, 32)


def _encoder() -> tuple[Make, torch.Tensor]:
    def make() -> nn.Module:
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
        return nn.Sequential(nn.TransformerEncoder(layer, 4), nn.Flatten(), nn.Linear(64 * 256, 10))

    return make, torch.randn(BATCH, 64, 256)


def _mlp() -> tuple[Make, torch.Tensor]:
    def make() -> nn.Module:
        hidden = [part for _ in range(3) for part in (nn.Linear(1024, 1024), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(1024, 10))

    return make, torch.randn(BATCH, 1024)


def _row(name: str, make: Make, inputs: torch.Tensor) -> str:
    program = isinstance(make(), torch.fx.GraphModule)  # fake quantizers compute in fp32 only
    steps = [training_step(make, inputs, way) for way in _WAYS if not (program and way.mixed)]
    chosen = _WAYS.index(numerics(make()))
    default, medians = time_alternately(steps)
    cells = [f"**{m:.2f}**" if i == chosen else f"{m:.2f}" for i, m in enumerate(medians)]
    cells += ["-"] * (len(_WAYS) - len(cells))
    row = f"| {name} | {default * 1e3:.0f} ms | {' | '.join(cells)} |"
    print(row, file=sys.stderr, flush=True)
    return row


def time_alternately(steps: Sequence[Callable[[], None]]) -> tuple[float, list[float]]:
    """Return the first step's seconds, and each step's time as a multiple of the first's: medians of rounds."""
    for step in steps:
        step()
    rounds = [[_time(step) for step in steps] for _ in range(ROUNDS)]
    ratios = [[taken / times[0] for taken in times] for times in rounds]
    seconds = statistics.median(times[0] for times in rounds)
    return seconds, [statistics.median(each) for each in zip(*ratios, strict=True)]


def training_step(make: Make, inputs: torch.Tensor, way: Numerics) -> Callable[[], None]:
    torch.manual_seed(0)
    module = make()
    if way.channels_last:
        module = module.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    targets = torch.arange(BATCH) % 10

    def step() -> None:
        with torch.autocast("cpu", way.mixed, enabled=way.mixed is not None):
            logits = module(inputs)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(logits.float(), targets).backward()
        optimizer.step()

    return step


def _time(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    return (time.perf_counter() - started) / STEPS


def _page(rows: list[str]) -> str:
    return "\n".join(
        [
            "# How fast one training step is, by layout and precision",
            "",
            f"Time of a step of {BATCH} samples relative to the default, median of {ROUNDS} interleaved rounds",
            f"of {STEPS} steps; below 1 is faster. Bold is what `compress.training.numerics` chooses.",
            "",
            "| model | a default step | " + " | ".join(way.name for way in _WAYS) + " |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "Command: `python benchmarks/numerics.py`",
            "",
            environment(),
            "",
        ]
    )


def environment() -> str:
    here, bf16 = provenance.environment(), {"amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd", "bf16"}
    features = ", ".join(sorted(provenance.cpu_features() & bf16))
    torch_version = provenance.versions("torch")["torch"]
    machine = f"{here['cpu']} ({features}), {here['threads']} threads, {here['system']}"
    return f"Environment: {machine}, torch {torch_version}."


if __name__ == "__main__":
    main()
