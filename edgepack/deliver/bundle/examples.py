"""Examples of loading and running the files of a bundle, with its own names and shapes.

A template's place says what it is for: templates/examples/<runtime>/<file>.j2, and in readings/<reading>/<file>.j2 what
a task's outputs mean: see `reading` of data/contract.py; templates/generation/<runtime>/<file>.j2 for files that write
text. The Python ones are run by the tests; those for apps keep to
the documented interfaces of the versions that they name.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from edgepack.deliver.bundle import rendering
from edgepack.deliver.bundle.archive import Files

if TYPE_CHECKING:
    from edgepack.core.signature import Signature, TensorSpec
    from edgepack.deliver.bundle.manifest import Manifest

_MOST = 20  # tokens that an example writes
_NOT_FOR = {"CoreMLBackend": ".kt", "VulkanBackend": ".swift"}  # delegates of the other system


@dataclass(frozen=True, kw_only=True)
class Types:
    """Names of one element type in each language."""

    numpy: str
    kotlin: str  # array type
    buffer: str  # buffer type in java.nio
    swift: str
    ort: str  # type in ONNX Runtime's Swift API


_TYPES = {
    "float32": Types(numpy="<f4", kotlin="FloatArray", buffer="FloatBuffer", swift="Float", ort="float"),
    "int64": Types(numpy="<i8", kotlin="LongArray", buffer="LongBuffer", swift="Int64", ort="int64"),
    "int32": Types(numpy="<i4", kotlin="IntArray", buffer="IntBuffer", swift="Int32", ort="int32"),
    "uint8": Types(numpy="|u1", kotlin="ByteArray", buffer="ByteBuffer", swift="UInt8", ort="uInt8"),
}


@dataclass(frozen=True, kw_only=True)
class Output:
    """`dims` is the shape as text: "1, 28, 28"."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def dims(self) -> str:
        return ", ".join(map(str, self.shape))


@dataclass(frozen=True, kw_only=True)
class Input(Output):
    """`argument` is the name as a valid identifier."""

    argument: str
    types: Types


def render(
    manifest: "Manifest",
    signature: "Signature",
    reading: str = "shapes",
    settings: Mapping[str, Any] = {},
    writing: Collection[str] = (),
) -> Files:
    """Return the examples for every runtime with templates; none if an input has a type that they do not support.

    `reading` is that of the task, and `settings` are the task's. Files of the formats `writing` write text.
    """
    if not all(spec.dtype in _TYPES for spec in signature.inputs):
        return {}
    inputs = [_input(i, spec) for i, spec in enumerate(signature.inputs)]
    outputs = [Output(name=spec.name, dtype=spec.dtype, shape=(1, *spec.shape)) for spec in signature.outputs]
    files: Files = {}
    for name, runtime in manifest.runtimes.items():
        folder = f"generation/{name}" if runtime.format in writing else f"examples/{name}"
        for file in _files(folder, runtime.needs or ""):
            files[f"examples/{name}/{file}"] = rendering.render(
                f"{folder}/{file}.j2",
                manifest=manifest,
                runtime=runtime,
                inputs=inputs,
                outputs=outputs,
                reading=reading,
                settings=settings,
                labels=len(signature.labels),
                text=signature.preprocessing.get("kind") == "text",
                type_name=_type_name(manifest.name),
                places=inputs[0].shape[-1],
                end=signature.preprocessing.get("end_id", 0),
                most=_MOST,
            )
    return files


def _files(folder: str, needs: str) -> list[str]:
    """Return the names of the examples in a folder of templates, without systems that lack the delegate."""
    found = sorted(file.stem for file in (rendering.FOLDER / folder).glob("*.j2"))
    return [file for file in found if PurePath(file).suffix != _NOT_FOR.get(needs)]


def _input(number: int, spec: "TensorSpec") -> Input:
    """Return an input; its argument is numbered unless its name is known to be safe in all languages and examples."""
    argument = spec.name if spec.name in _PLAIN else f"input{number}"
    return Input(name=spec.name, argument=argument, dtype=spec.dtype, types=_TYPES[spec.dtype], shape=(1, *spec.shape))


# Names that the shipped data sets use. Languages have many reserved words, which differ by version, and examples have
# names of their own: all other names are numbered.
_PLAIN = {"input", "input_ids", "attention_mask"}


def _type_name(name: str) -> str:
    """Return the recipe's name as a type name.

    >>> _type_name("bbc-minilm_full.v2"), _type_name("2fast")
    ('BbcMinilmFullV2', 'Model2fast')
    """
    joined = "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", name))
    return joined if joined[:1].isalpha() else f"Model{joined}"
