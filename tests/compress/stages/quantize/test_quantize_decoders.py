"""Decoders in int8: a token whose numbers are far larger than the others' spoils no other token, in no file."""

from pathlib import Path

import numpy
import pytest
import torch
from forked_workers import run_here
from gguf_factories import pieces, windows
from torch_factories import context, write

from edgepack.compress.stages import quantize
from edgepack.compress.training import evaluation
from edgepack.config import plugins
from edgepack.data.splits import Split, TrainingData
from edgepack.measure import evaluate
from edgepack.models.candidate import Candidate

LENGTH = 8


def decoder() -> Candidate:
    """An untrained GPT-2 whose first token becomes hundreds of times as large as the others inside a layer."""
    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 2, "heads": 4}
    candidate = Candidate.start(plugins.choose("models", {"gpt2": sizes}), windows(LENGTH))
    network = candidate.module.layers[0].ffn
    with torch.no_grad():
        for weight in candidate.module.parameters():
            weight.add_(torch.randn(weight.shape) * 0.2)
        candidate.module.positions.weight[0] *= 40
        network.up.weight *= 3
    return candidate


def split(count: int = 6) -> Split:
    ids = torch.randint(0, len(pieces()), (count, LENGTH), generator=torch.Generator().manual_seed(0))
    return Split(inputs=(ids,), targets=torch.stack([ids, torch.ones_like(ids)], dim=2))


def made(candidate: Candidate) -> Candidate:
    data = TrainingData(train=split(), validation=split())
    return quantize.run(candidate, quantize.Config(mode="ptq"), context(data=data))


def logits(module: torch.nn.Module) -> numpy.typing.NDArray[numpy.float32]:
    found: numpy.typing.NDArray[numpy.float32] = evaluation.predict(module, split())[0].numpy()
    return found


def test_each_token_has_a_range_of_its_own() -> None:
    candidate = decoder()
    before = logits(candidate.module)
    after = logits(made(candidate).module)
    error = numpy.abs(after - before)[:, 1:].mean() / before[:, 1:].std()
    assert error < 0.05


@pytest.mark.parametrize("format", plugins.names("exporters"))
def test_the_files_give_what_torch_gives(format: str, tmp_path: Path) -> None:
    exporter, candidate = plugins.load("exporters", format), made(decoder())
    file = tmp_path / f"model{exporter.SUFFIX}"
    file.write_bytes(write(candidate, format, tmp_path / "model"))
    (found,) = evaluate.outputs(run_here, file=file, runtime=exporter.RUNTIME, split=split(), folder=tmp_path)
    expected = logits(candidate.module)
    assert numpy.abs(found - expected).max() < 0.02 * numpy.abs(expected).max()
    assert (found.argmax(2) == expected.argmax(2)).mean() > 0.95
