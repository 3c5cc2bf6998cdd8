"""Run a bundle's files on inputs, each in a fresh process."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgepack.core.frozen import Json
from edgepack.deliver.bundle.archive import Files
from edgepack.measure import evaluate

if TYPE_CHECKING:
    import numpy

    from edgepack.measure.contract import Connection

    Array = numpy.typing.NDArray[Any]
    Arrays = tuple[Array, ...]


def outputs(file: str, files: Files, columns: "list[Array]", runtime: str, connection: "Connection") -> "Arrays":
    """Return the outputs of all cases, each [cases, ...], computed in a fresh process."""
    with job("predict", file, files, columns, runtime) as asked:
        connection.run({**asked, "rows": len(columns[0])})
        return evaluate.answers(Path(asked["output"]))


@contextmanager
def job(mode: str, file: str, files: Files, columns: "Sequence[Array]", runtime: str) -> Iterator[Json]:
    """Provide a job that runs a file on these inputs."""
    import numpy

    with TemporaryDirectory() as folder:
        model = Path(folder) / f"model{PurePosixPath(file).suffix}"
        model.write_bytes(files[file])
        inputs = [Path(folder) / f"input-{i}.npy" for i in range(len(columns))]
        for path, column in zip(inputs, columns, strict=True):
            numpy.save(path, column, allow_pickle=False)
        where = {"inputs": [str(path) for path in inputs], "output": str(Path(folder) / "outputs.npz")}
        yield {"mode": mode, "runtime": runtime, "file": str(model), **where}
