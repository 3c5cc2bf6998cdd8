"""Run a bundle's samples through its files, each in its own runtime, and compare outputs.

for answer in run(Path("dist/news/news.zip")):
    print(answer.file, answer.sample, answer.label)

Neither a recipe nor the data is needed, nor torch where the runtime does without.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf, isfinite, prod
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from edgepack.config import plugins
from edgepack.config.device import Controls
from edgepack.core.errors import DeviceError, RecipeError, SelftestError, VerifyError
from edgepack.core.frozen import Frozen
from edgepack.core.runtimes import RUNTIMES
from edgepack.core.signature import labels
from edgepack.core.units import SHARE
from edgepack.data.texts import tokenizer
from edgepack.deliver import bundle
from edgepack.deliver.bundle.archive import Files
from edgepack.deliver.bundle.cases import Case, Cases, Input, Interface
from edgepack.deliver.bundle.manifest import Runtime, printable
from edgepack.measure import processes
from edgepack.measure.contract import connected

if TYPE_CHECKING:
    import numpy

    from edgepack.config.device import Device
    from edgepack.measure.contract import Connection

    Array = numpy.typing.NDArray[Any]


_SHOWN = 50  # characters of a text
_AGAIN = "build the bundle again"

Content = TypeVar("Content", bound=Frozen)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One file's result for one sample: the label, and the expected one from build time.

    `distance` is the largest difference of the logits, as a share of their range; `allowed` is its limit.
    """

    file: str
    sample: str
    label: str
    expected: str
    distance: float
    allowed: float

    @property
    def same(self) -> bool:
        return self.label == self.expected and self.distance <= self.allowed

    @property
    def difference(self) -> str:
        if self.label != self.expected:
            return f"{self.file} gives {self.label} for {self.sample}, not {self.expected}"
        shares = f"{SHARE.format(self.distance)} of their range, allowed are {SHARE.format(self.allowed)}"
        return f"{self.file} gives other logits for {self.sample}: they differ by {shares}"


def run(path: Path, device: "Device | None" = None) -> Iterator[Answer]:
    """Yield each result as it comes, from this computer on one thread, or from a device.

    Raises VerifyError at once if the bundle is not valid. At the end raises SelftestError if an output or a tokenized
    text differs from build time, and DeviceError if a file's runtime is not available.
    """
    manifest, files = bundle.read(path)
    if manifest.deploy_only:
        raise RecipeError(f"{path} holds only what an app ships, no samples", "test the complete bundle instead")
    cases = _parsed(files, "selftest/cases.json", Cases)
    known = cases.cases
    interface = _parsed(files, "io/signature.json", Interface)
    models = dict(_models(manifest, cases))
    columns = _columns(files, known, interface.inputs)
    different = [*_tokenized(files, known, interface, columns)]
    skipped = []
    with _reached(device) as connection:
        for runtime, facts in models.items():
            why = _absent(runtime, None if device is None else connection.facts) or _unknown(facts.format, cases)
            if why:
                skipped.append(f"{facts.entry.file} was not run: {why}")
                continue
            for answer in _answers(manifest, files, cases, columns, runtime, connection):
                if not answer.same:
                    different.append(answer.difference)
                yield answer
    _judge(path, different, skipped)


@contextmanager
def _reached(device: "Device | None") -> "Iterator[Connection]":
    if device is None:
        here: Any = processes.Host(Controls(threads=1))
        with closing(here):
            yield here
        return
    if "predict" not in device.runner.module.EVIDENCE:
        raise RecipeError(f"{device.name} cannot run files, so it cannot test a bundle", "use another device")
    with connected(device) as connection:
        yield connection


def _judge(path: Path, different: list[str], skipped: list[str]) -> None:
    listed = "\n".join(f"  {each}" for each in [*different, *skipped])
    if different:
        advice = "do not ship it for this runtime and processor: compare versions with provenance/"
        raise SelftestError(f"{path}: outputs differ from those recorded at build time:\n{listed}", advice)
    if skipped:
        raise DeviceError(
            f"{path} could not be tested completely:\n{listed}",
            "install the runtime, or test on a computer that has it",
        )


def _parsed(files: Files, name: str, kind: type[Content]) -> Content:
    try:
        return kind.model_validate_json(files[name])
    except (KeyError, ValidationError):
        raise VerifyError(f"{name} not found, or not valid for a self-test", _AGAIN) from None


def _models(manifest: bundle.Manifest, cases: Cases) -> Iterator[tuple[str, Runtime]]:
    """Yield each runtime with its file. Raises an error if there is nothing to compare."""
    if not (manifest.runtimes and cases.cases):
        raise VerifyError("the bundle has no self-test samples", _AGAIN)
    for runtime, facts in manifest.runtimes.items():
        if facts.format not in cases.not_run and not all(facts.format in case.expected for case in cases.cases):
            raise VerifyError(f"the bundle has no expected outputs for {runtime}", _AGAIN)
        yield runtime, facts


def _columns(files: Files, cases: tuple[Case, ...], inputs: tuple[Input, ...]) -> "list[Array]":
    """Return each input for all cases, [cases, *shape]."""
    import numpy

    columns = []
    for place, spec in enumerate(inputs):
        size = numpy.dtype(spec.dtype).itemsize * prod(spec.shape)
        rows = [files.get(f"selftest/{case.inputs[place]}") if place < len(case.inputs) else None for case in cases]
        if wrong := [i for i, row in enumerate(rows) if row is None or len(row) != size or spec.shape[:1] != (1,)]:
            raise VerifyError(f"the input {spec.name!r} of case {wrong[0]} does not match io/signature.json", _AGAIN)
        content = b"".join(row for row in rows if row)
        little = numpy.frombuffer(content, numpy.dtype(spec.dtype).newbyteorder("<"))
        columns.append(little.astype(spec.dtype).reshape(len(cases), *spec.shape[1:]))
    return columns


def _tokenized(files: Files, cases: tuple[Case, ...], interface: Interface, columns: "list[Array]") -> Iterator[str]:
    """Yield cases in which the shipped tokenizer gives other inputs than the model had at build time."""
    import numpy

    texts = {i: _text(files, case) for i, case in enumerate(cases) if case.text is not None}
    if not texts or interface.preprocessing.get("kind") != "text":
        return
    try:
        reader = tokenizer.read(files[f"io/{tokenizer.FILE}"])
    except (KeyError, ValueError) as error:
        why = printable(str(error))
        raise VerifyError(f"io/{tokenizer.FILE} not found, or not a tokenizer: {why}", _AGAIN) from None
    for i, text in texts.items():
        made = tokenizer.encode(reader, [text]).inputs()
        for spec, column in zip(interface.inputs, columns, strict=True):
            if not numpy.array_equal(made.get(spec.name, ()), column[i : i + 1]):
                yield f"io/{tokenizer.FILE} gives other {spec.name} for {_shown(text)}"


def _text(files: Files, case: Case) -> str:
    try:
        return files[f"selftest/{case.text}"].decode()
    except (KeyError, UnicodeDecodeError):
        raise VerifyError(f"selftest/{case.text} not found, or not text", _AGAIN) from None


def _absent(runtime: str, facts: dict[str, Any] | None) -> str:
    """Return why the runtime is not available, here or on the device with these facts, or ""."""
    if runtime not in RUNTIMES:
        return f"this edgepack does not support the runtime {runtime!r}"
    if facts is not None:
        never = str(facts.get("lacks", {}).get(runtime, ""))
        return never or ("" if runtime in facts["versions"] else f"{runtime} is not installed on the device")
    lacking = [package for package in RUNTIMES[runtime].packages if find_spec(package) is None]
    return f"{' and '.join(lacking)} is not installed here" if lacking else ""


def _unknown(format: str, cases: Cases) -> str:
    why = cases.not_run.get(format)
    return f"its expected outputs are unknown: at build time, {printable(why)}" if why else ""


def _answers(
    manifest: bundle.Manifest,
    files: Files,
    cases: Cases,
    columns: "list[Array]",
    runtime: str,
    connection: "Connection",
) -> Iterator[Answer]:
    """Yield a file's result for every case, with the expected one."""
    import numpy

    facts, decide = manifest.runtimes[runtime], plugins.load("tasks", manifest.task).decide
    names = _names(files)
    file = facts.entry.file
    now = _logits(file, files, columns, runtime, connection)
    for case, logits in zip(cases.cases, now, strict=True):
        before = numpy.array(case.expected[facts.format])
        if logits.shape != before.shape or len(names) != before.size:
            raise VerifyError(f"{file} gives {logits.size} values, which does not match selftest/ and io/", _AGAIN)
        label, expected = (printable(names[int(decide(each[None])[0])]) for each in (logits, before))
        sample = _shown(_text(files, case)) if case.text is not None else case.inputs[0].removesuffix(".bin")
        distance = _distance(logits, before)
        yield Answer(
            file=file,
            sample=sample,
            label=label,
            expected=expected,
            distance=distance,
            allowed=cases.tolerance.logits,
        )


def _names(files: Files) -> list[str]:
    try:
        return labels.read(files["io/labels.txt"])
    except (KeyError, ValueError):
        raise VerifyError("io/labels.txt not found, or without one label per line", _AGAIN) from None


def _distance(logits: "Array", before: "Array") -> float:
    """Return the largest difference as a share of the range of `before`; infinite if either is not finite."""
    largest = float(abs(logits - before).max())
    span = float(before.max() - before.min())
    if not isfinite(largest) or not isfinite(span):
        return inf
    return 0.0 if largest == 0 else largest / span if span else inf


def _logits(file: str, files: Files, columns: "list[Array]", runtime: str, connection: "Connection") -> "Array":
    """Return logits [cases, classes], computed in a fresh process."""
    import numpy

    with TemporaryDirectory() as folder:
        model = Path(folder) / f"model{PurePosixPath(file).suffix}"
        model.write_bytes(files[file])
        inputs, output = [Path(folder) / f"input-{i}.npy" for i in range(len(columns))], Path(folder) / "logits.npy"
        for path, column in zip(inputs, columns, strict=True):
            numpy.save(path, column, allow_pickle=False)
        job = {
            "mode": "predict",
            "rows": len(columns[0]),
            "runtime": runtime,
            "file": str(model),
            "inputs": [str(path) for path in inputs],
            "output": str(output),
        }
        connection.run(job)
        logits: Array = numpy.load(output, allow_pickle=False)
        return logits


def _shown(text: str) -> str:
    """Return the beginning of a text on one line, in quotes."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return f'"{line}"' if len(line) <= _SHOWN else f'"{line[:_SHOWN].rstrip()} ..."'
