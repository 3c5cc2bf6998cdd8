"""DS-CNN takes raw sound or features of it, and what makes features inside it stays in fp32."""

from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import pytest
import torch
from torch import nn

from edgepack.compress.stages.quantize.capture import capture
from edgepack.compress.stages.quantize.contract import Scheme
from edgepack.compress.stages.quantize.convert import converted
from edgepack.compress.stages.quantize.observers import prepare
from edgepack.config import plugins
from edgepack.core.errors import StageError
from edgepack.core.signature import Signature, TensorSpec
from edgepack.export.contract import write
from edgepack.models.candidate import Candidate
from edgepack.models.log_mel import LogMel
from edgepack.models.sources import ds_cnn

FEATURES = {"rate": 8000, "window": 320, "hop": 160, "mels": 16}
LABELS = ("yes", "no", "other")


def signature(*shape: int) -> Signature:
    sound = TensorSpec(name="input", shape=shape)
    return Signature(inputs=(sound,), labels=LABELS, preprocessing={"kind": "sound", "log_mel": FEATURES})


def build(*shape: int, **settings: Any) -> nn.Module:
    return ds_cnn.build(ds_cnn.Config(**{"ds_cnn": 8, "blocks": 2, **settings}), signature(*shape)).eval()


def test_it_hears_raw_sound_or_features() -> None:
    raw, apart = build(2000), build(16, 11)
    apart.load_state_dict(raw.state_dict())  # the front end has no weights of its own
    sound = torch.rand(2, 2000) - 0.5
    assert raw(sound).shape == (2, 3)
    torch.testing.assert_close(apart(LogMel(**FEATURES)(sound)), raw(sound))


def test_data_that_is_no_sound_is_refused() -> None:
    pictures = Signature(inputs=(TensorSpec(name="input", shape=(1, 8, 8)),), labels=LABELS)
    with pytest.raises(StageError, match=r"ds_cnn hears sounds, but the data has inputs of shape \[1, 8, 8\]"):
        ds_cnn.build(ds_cnn.Config(ds_cnn=8), pictures)


def test_features_are_made_in_fp32_where_the_rest_is_int8() -> None:
    candidate = Candidate.start(plugins.choose("models", {"ds_cnn": 8, "blocks": 2}), signature(2000))
    loud = torch.rand(8, 2000, generator=torch.Generator().manual_seed(0)) - 0.5
    observed = prepare(capture(candidate, ()), Scheme(), training=False)
    observed(loud)
    graph = converted(observed)
    int8 = "quantized_decomposed"
    rounded = [n for n in graph.graph.nodes if n.op == "call_function" and int8 in str(n.target)]
    assert rounded
    ahead = [n for n in graph.graph.nodes if n.op == "call_function"]
    logarithm = next(i for i, n in enumerate(ahead) if n.target is torch.ops.aten.log.default)
    assert not [n for n in ahead[:logarithm] if n in rounded and "dequantize" not in str(n.target)]
    quiet = loud * 1e-3
    with torch.no_grad():
        torch.testing.assert_close(graph(quiet), candidate.module.eval()(quiet), atol=0.05, rtol=0.1)


def test_silence_is_a_number_in_files_too(tmp_path: Path) -> None:
    """A sum with a number of less than 1e-8 was taken out of ONNX files, and the logarithm was that of 0."""
    candidate = Candidate.start(plugins.choose("models", {"ds_cnn": 8, "blocks": 2}), signature(2000))
    write(candidate, plugins.choose("exporters", "onnx"), tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    silence = numpy.zeros((1, 2000), numpy.float32)
    [found] = session.run(None, {"input": silence})
    with torch.no_grad():
        numpy.testing.assert_allclose(found, candidate.module.eval()(torch.from_numpy(silence)).numpy(), atol=1e-4)


def test_a_narrow_copy_keeps_the_features() -> None:
    """Pruning finds no channels in the front end, and all others behind it."""
    from edgepack.models.structure.dependency_groups import survey

    whole = survey(build(2000), (torch.rand(2, 2000),)).whole
    assert {*whole} <= {"head", "front_end"}
