"""A bundle of a text classifier that counts words, small enough to be made for every test."""

import json
from pathlib import Path
from typing import Any

import numpy
import onnx
from factories import WORDS, runtime, sealed, tokenizer
from onnx import TensorProto, helper, numpy_helper

from edgepack.data.texts.tokenizer import encode, load
from edgepack.deliver.bundle import pack

TEXTS = ("The bank\nand the market fell", "The team won")
TOLERANCE = {"decision": "equal", "logits": 0.05}
Files = dict[str, bytes]


def classifier(first: int = 0) -> bytes:
    """An ONNX file that counts the words of each topic: a table of logits a token, summed over the mask."""
    table = numpy.zeros((4 + len(WORDS), 2), numpy.float32)
    for label, words in enumerate((("bank", "market", "fell"), ("team", "won", "goal"))):
        table[[4 + WORDS.index(word) for word in words], (label + first) % 2] = 1
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["each"]),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["mask"]),
        helper.make_node("Mul", ["each", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["logits"], keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [1, 8]) for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2])
    constants = {"table": table, "last": numpy.array([2]), "middle": numpy.array([1])}
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "words", inputs, [output], initializer=held)
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()
    onnx.checker.check_model(content)
    return content


def text_files(**changed: Any) -> Files:
    fixed = load(tokenizer(), 8)
    inputs = encode(fixed.tokenizer, TEXTS).inputs()
    cases = [
        {
            "inputs": [f"case-{i}-{name}.bin" for name in inputs],
            "target": i,
            "expected": {"onnx": logits},
            "text": f"case-{i}.txt",
        }
        for i, logits in enumerate(([2.9, 0.0], [0.0, 1.95]))  # in their last bits, another processor may differ
    ]
    files = {
        "models/news.onnx": classifier(),
        "io/labels.txt": b"money\nsport\n",
        "io/tokenizer.json": fixed.json(),
        "io/signature.json": as_json(
            inputs=[{"name": name, "shape": [1, 8], "dtype": "int64"} for name in inputs],
            outputs=[{"name": "logits", "shape": [1, 2], "dtype": "float32"}],
            preprocessing=fixed.preprocessing(),
        ),
        "selftest/cases.json": as_json(cases=cases, byte_order="little", tolerance=TOLERANCE),
    }
    for i, text in enumerate(TEXTS):
        files[f"selftest/case-{i}.txt"] = text.encode()
        files |= {f"selftest/case-{i}-{name}.bin": array[i].astype("<i8").tobytes() for name, array in inputs.items()}
    return {**files, **changed}


def as_json(**content: Any) -> bytes:
    return json.dumps(content).encode()


def bundle(files: Files | None = None, **changes: Any) -> Path:
    runtimes = {"onnxruntime": runtime("models/news.onnx")}
    facts = {"task": "text_classification", "runtimes": runtimes, **changes}
    path = Path("news.zip")
    path.write_bytes(pack(sealed(files or text_files(), **facts)))
    return path
