"""The files that others make of a model: exported as their documentation says, quantized with the same samples."""

import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch

from edgepack.core import provenance
from edgepack.data.splits import Split
from edgepack.models.candidate import Candidate

FP32 = "fp32, as exported"
NNCF = ("nncf==3.4.0", *(f"{name}=={provenance.versions(name)[name]}" for name in ("onnx", "onnxruntime")))


def of_onnx(teacher: Candidate, folder: Path, calibration: Split, *, text: bool) -> dict[str, Path]:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    plain, ready = folder / "plain.onnx", folder / "ready.onnx"
    names = [spec.name for spec in teacher.signature.inputs]
    program = torch.export.export(teacher.module.eval(), teacher.example_inputs())
    exported: Any = torch.onnx.export(program, dynamo=True, verbose=False, input_names=names)
    exported.save(str(plain), external_data=False)
    quant_pre_process(str(plain), str(ready))
    made = {f"{FP32}: onnxruntime": plain}
    if text:
        made["quantize_dynamic, per channel: onnxruntime"] = path = folder / "dynamic.onnx"
        quantize_dynamic(ready, path, per_channel=True)
    else:
        for kind in ("QUInt8", "QInt8"):
            made[f"quantize_static, {kind[1:].lower()}: onnxruntime"] = path = folder / f"static-{kind}.onnx"
            types = {"activation_type": QuantType[kind], "weight_type": QuantType.QInt8}
            quantize_static(
                ready, path, _Reader(names, calibration), quant_format=QuantFormat.QDQ, per_channel=True, **types
            )
    return made


class _Reader:
    """Gives onnxruntime its calibration samples, one at a time."""

    def __init__(self, names: list[str], samples: Split) -> None:
        self.feeds = _feeds(names, samples)

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def _feeds(names: list[str], samples: Split) -> Iterator[dict[str, Any]]:
    for batch in samples.batches(1):
        yield {name: tensor.numpy() for name, tensor in zip(names, batch.inputs, strict=True)}


_NNCF_SCRIPT = """
import sys, numpy, onnx, nncf
source, samples, target, text = sys.argv[1:]
held = numpy.load(samples)
feeds = [{name: held[name][i:i + 1] for name in held.files} for i in range(len(held[held.files[0]]))]
more = {"model_type": nncf.ModelType.TRANSFORMER} if text == "True" else {}
onnx.save(nncf.quantize(onnx.load(source), nncf.Dataset(feeds), subset_size=len(feeds), **more), target)
"""


def of_nncf(teacher: Candidate, plain: Path, folder: Path, calibration: Split, *, text: bool) -> dict[str, Path]:
    """Quantize a file of `of_onnx` with NNCF. Return nothing where it cannot be installed or fails; its message is
    shown.
    """
    names = [spec.name for spec in teacher.signature.inputs]
    home, samples, target = folder.parent / "nncf", folder / "samples.npz", folder / "nncf.onnx"
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *NNCF], check=False)
    arrays = zip(*(feed.values() for feed in _feeds(names, calibration)), strict=True)
    held: dict[str, Any] = {name: numpy.concatenate(each) for name, each in zip(names, arrays, strict=True)}
    numpy.savez(samples, **held)
    command = [str(each) for each in (python, "-c", _NNCF_SCRIPT, plain, samples, target, text)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"NNCF failed in {folder}: {done.stderr[-1000:]}", file=sys.stderr, flush=True)
        return {}
    return {"NNCF: onnxruntime": target}


def of_executorch(teacher: Candidate, folder: Path, calibration: Split, *, text: bool) -> dict[str, Path]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    inputs = teacher.example_inputs()
    exported = torch.export.export(teacher.module.eval(), inputs)
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=text)
    observed = prepare_pt2e(exported.module(check_guards=False), XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        for batch in calibration.batches(1):
            observed(*batch.inputs)
    programs = {FP32: exported, "post-training flow, int8": torch.export.export(convert_pt2e(observed), inputs)}
    made = {}
    for name, program in programs.items():
        made[f"{name}: executorch"] = path = folder / f"{name}.pte"
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)
    return made
