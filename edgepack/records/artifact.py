"""Artifact: one exported file for one runtime."""

import zlib
from pathlib import Path

from edgepack.core.files import file_digest
from edgepack.core.frozen import Frozen
from edgepack.records.file_contents import Contents

MODEL, TEACHER = "model", "teacher"  # subjects: the shipped model, and the fp32 file that it is compared with


class Artifact(Frozen):
    """The file that a device loads."""

    format: str  # exporter that wrote it: executorch, onnx
    runtime: str  # runtime that loads it: executorch, onnxruntime
    subject: str = MODEL
    file: str
    bytes: int
    sha256: str
    contents: Contents | None = None  # only of shipped files, if the exporter can read them
    compressed: int | None = None  # bytes of a shipped file, deflated for download

    @classmethod
    def of(cls, path: Path, *, format: str, runtime: str, subject: str, contents: Contents | None = None) -> "Artifact":
        return cls(
            format=format,
            runtime=runtime,
            subject=subject,
            file=path.name,
            bytes=path.stat().st_size,
            sha256=file_digest(path),
            contents=contents,
            compressed=deflated(path.read_bytes()) if subject == MODEL else None,
        )

    @property
    def label(self) -> str:
        return label_of(self.format, self.subject)


def label_of(format: str, subject: str) -> str:
    """
    >>> label_of("onnx", "model"), label_of("onnx", "teacher")
    ('onnx', 'teacher (onnx)')
    """
    return format if subject == MODEL else f"{subject} ({format})"


def deflated(content: bytes) -> int:
    """Return the download size: stores and web servers compress with deflate or better."""
    return len(zlib.compress(content))


RUNTIME_FILE = "runtime-"  # name prefix, in the store, of files for runtime/
