"""Run a bundle's samples through its files, each in its own runtime, and compare outputs.

for answer in run(Path("dist/news/news.zip")):
    print(answer.file, answer.sample, answer.label)

Neither a recipe nor the data is needed, nor torch where the runtime does without.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from math import inf, isfinite, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from edgepack.config import plugins
from edgepack.config.device import Controls
from edgepack.config.document import Document, Nested
from edgepack.core.errors import DeviceError, RecipeError, SelftestError, VerifyError
from edgepack.core.frozen import Frozen
from edgepack.core.runtimes import RUNTIMES
from edgepack.core.signature import Signature, TensorSpec, labels
from edgepack.core.signature.shown import beginnings
from edgepack.core.units import SHARE
from edgepack.data.texts import tokenizer
from edgepack.deliver import bundle
from edgepack.deliver.bundle.archive import Files
from edgepack.deliver.bundle.cases import Case, Cases, Input, Interface
from edgepack.deliver.bundle.manifest import Runtime, printable
from edgepack.measure import processes
from edgepack.measure.contract import connected
from edgepack.workflows.selftest import jobs

if TYPE_CHECKING:
    import numpy

    from edgepack.config.device import Device
    from edgepack.data.contract import Task
    from edgepack.measure.contract import Connection

    Array = numpy.typing.NDArray[Any]
    Arrays = tuple[Array, ...]


_SHOWN = 50  # characters of a text
_OWN = "python"  # task that is a user's own code
_AGAIN = "build the bundle again"

Content = TypeVar("Content", bound=Frozen)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One file's result for one sample: what an app would show, such as a label, and what it was at build time.

    `agreement` is that of the two as the task defines it, and `distance` the largest difference of an output, as a
    share of its range; `least` and `allowed` are their limits. `unread` says why the outputs were compared as numbers
    alone, if they were.
    """

    file: str
    outputs: str  # their names
    sample: str
    label: str
    expected: str
    agreement: float
    least: float
    distance: float
    allowed: float
    unread: str = ""

    @property
    def same(self) -> bool:
        return self.agreement >= self.least and self.distance <= self.allowed

    @property
    def difference(self) -> str:
        if self.label != self.expected and self.agreement < self.least:
            return f"{self.file} gives {self.label} for {self.sample}, not {self.expected}"
        if self.agreement < self.least:
            return f"{self.file} agrees by {SHARE.format(self.agreement)} for {self.sample}"
        shares = f"{SHARE.format(self.distance)} of their range, allowed are {SHARE.format(self.allowed)}"
        return f"{self.file} gives other {self.outputs} for {self.sample}: they differ by {shares}"


@dataclass(frozen=True, kw_only=True)
class _Numbers:
    """Stands for a task whose code is not used: what outputs mean is unknown, so only their numbers are compared."""

    outputs: tuple[TensorSpec, ...]
    why: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.outputs)

    def agreement(self, outputs: "Arrays", reference: "Arrays") -> "Array":
        import numpy

        return numpy.ones(len(reference[0]))

    def told(self, outputs: "Arrays") -> list[str]:
        return beginnings(self.names, outputs)

    def condensed(self, outputs: "Arrays", inputs: "Arrays") -> "Arrays":
        return outputs

    def condensed_outputs(self) -> "tuple[TensorSpec, ...]":
        return self.outputs


def run(path: Path, device: "Device | None" = None, *, own_code: bool = False) -> Iterator[Answer]:
    """Yield each result as it comes, from this computer on one thread, or from a device.

    The code of a user's own task runs only with `own_code`, since anybody may have made the bundle that names it;
    without it, and without a plugin that defines the task, outputs are compared as numbers.

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
    task = _task(manifest, files, interface, own_code)
    columns = _columns(files, known, interface.inputs)
    different = [*_tokenized(files, known, interface, columns)]
    skipped = []
    with _reached(device) as connection:
        for runtime, facts in models.items():
            why = _absent(runtime, None if device is None else connection.facts) or _unknown(facts.format, cases)
            if why:
                skipped.append(f"{facts.entry.file} was not run: {why}")
                continue
            answers = _answers(manifest, files, cases, interface, task, columns, runtime, connection)
            for answer in chain(answers, _written(manifest, files, cases, columns, runtime, connection)):
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
    interface: Interface,
    task: "Task | _Numbers",
    columns: "list[Array]",
    runtime: str,
    connection: "Connection",
) -> Iterator[Answer]:
    """Yield a file's result for every case, with the expected one."""
    facts = manifest.runtimes[runtime]
    file = facts.entry.file
    now = jobs.outputs(file, files, columns, runtime, connection)
    allowed = 0.0 if cases.tolerance.share is None else cases.tolerance.share
    apart = _distance if isinstance(task, _Numbers) or cases.tolerance.share is not None else _flaw
    for row, case in enumerate(cases.cases):
        fed = tuple(column[row : row + 1] for column in columns)
        given = task.condensed(tuple(array[row : row + 1] for array in now), fed)
        before = _expected(files, case, facts.format, task.condensed_outputs())
        if [each.shape for each in given] != [each.shape for each in before]:
            sizes = sum(each.size for each in given)
            raise VerifyError(f"{file} gives {sizes} values, which does not match selftest/ and io/", _AGAIN)
        label, expected = (printable(task.told(each)[0]) for each in (given, before))
        sample = _shown(_text(files, case)) if case.text is not None else case.inputs[0].removesuffix(".bin")
        yield Answer(
            file=file,
            outputs=" and ".join(each.name for each in interface.outputs),
            sample=sample,
            label=label,
            expected=expected,
            agreement=float(task.agreement(given, before)[0]),
            least=cases.tolerance.agreement,
            distance=max(map(apart, given, before)),
            allowed=allowed,
            unread=task.why if isinstance(task, _Numbers) else "",
        )


def _task(manifest: bundle.Manifest, files: Files, interface: Interface, own_code: bool) -> "Task | _Numbers":
    """Return the task that the model was built for, or what stands for it."""
    with TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_bytes(files.get("provenance/recipe.yaml", b"task:"))
        named = Document.read(recipe).data.get("task") or manifest.task
    specs = {
        kind: tuple(TensorSpec(name=each.name, shape=each.shape[1:], dtype=each.dtype) for each in found)
        for kind, found in (("inputs", interface.inputs), ("outputs", interface.outputs))
    }
    try:
        own = plugins.name_of("tasks", named) == _OWN
        if own and not own_code:
            return _Numbers(
                outputs=specs["outputs"], why="the bundle's task is code of its own: with --own-code it is run"
            )
        choice = plugins.choose("tasks", named)
    except ValueError as error:
        why = error.error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, Nested) else error
        return _Numbers(outputs=specs["outputs"], why=f"the bundle's task is not available here: {printable(str(why))}")
    signature = Signature(**specs, labels=_names(files), preprocessing=interface.preprocessing)
    task: Task = choice.module.task(choice.config, signature)
    if [each.shape for each in task.file_outputs()] != [each.shape for each in specs["outputs"]]:
        given = sum(prod(each.shape) for each in specs["outputs"])
        raise VerifyError(f"the model gives {given} values, which does not match selftest/ and io/", _AGAIN)
    return task


def _names(files: Files) -> tuple[str, ...]:
    if "io/labels.txt" not in files:
        return ()
    try:
        return tuple(labels.read(files["io/labels.txt"]))
    except ValueError:
        raise VerifyError("io/labels.txt is without one label per line", _AGAIN) from None


def _expected(files: Files, case: Case, format: str, outputs: tuple[TensorSpec, ...]) -> "tuple[Array, ...]":
    """Return the outputs of a case at build time, each [1, ...]."""
    import numpy

    known = case.expected[format]
    named = known if isinstance(known, dict) else {outputs[0].name: known}
    found = []
    for spec in outputs:
        numbers = named.get(spec.name, ())
        if isinstance(numbers, str):
            array = numpy.frombuffer(files.get(f"selftest/{numbers}", b""), "<f4").astype("float32")
        else:
            array = numpy.array(numbers)
        if array.size != prod(spec.shape):
            raise VerifyError(f"the expected {spec.name} of a case does not match io/signature.json", _AGAIN)
        found.append(array.reshape(1, *spec.shape))
    return tuple(found)


def _distance(now: "Array", before: "Array") -> float:
    """Return the largest difference as a share of the range of `before`; infinite if either is not finite."""
    largest = float(abs(now - before).max())
    span = float(before.max() - before.min())
    if not isfinite(largest) or not isfinite(span):
        return inf
    return 0.0 if largest == 0 else largest / span if span else inf


def _flaw(now: "Array", before: "Array") -> float:
    """Return infinity if `now` is not finite, else 0: where the task alone says how far outputs agree."""
    return 0.0 if isfinite(float(now.sum())) else inf


def _written(
    manifest: bundle.Manifest,
    files: Files,
    cases: Cases,
    columns: "list[Array]",
    runtime: str,
    connection: "Connection",
) -> Iterator[Answer]:
    """Yield for every case what a file writes after its beginning, if it writes text, beside what it wrote before."""
    facts = manifest.runtimes[runtime]
    for row, case in enumerate(cases.cases):
        if (known := case.generated.get(facts.format)) is None:
            continue
        prompt = columns[0][row : row + 1, : known.prompt]
        with jobs.job("generate", facts.entry.file, files, [prompt], runtime) as job:
            [tokens] = connection.run({**job, "count": len(known.tokens)})["tokens"]
        yield Answer(
            file=facts.entry.file,
            outputs="tokens",
            sample=f"the beginning of {case.inputs[0].removesuffix('.bin')}",
            label=_told(files, tokens),
            expected=_told(files, known.tokens),
            agreement=float(tokens == [*known.tokens]),
            least=1.0,
            distance=0.0,
            allowed=0.0,
        )


def _told(files: Files, tokens: Sequence[int]) -> str:
    """Return tokens as text, by the tokenizer in the bundle, or as numbers."""
    try:
        return _shown(tokenizer.read(files[f"io/{tokenizer.FILE}"]).decode([*tokens]))
    except (ImportError, KeyError, ValueError):
        return " ".join(map(str, tokens))


def _shown(text: str) -> str:
    """Return the beginning of a text on one line, in quotes."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return f'"{line}"' if len(line) <= _SHOWN else f'"{line[:_SHOWN].rstrip()} ..."'
