"""The bundle: what a release ships, byte for byte the same on the same versions, processor type and threads.

    manifest.json                 every file with its size, sha256 and role
    models/                       the exported files
    io/signature.json labels.txt  names, shapes, types, preprocessing, labels
    io/tokenizer.json             what makes the inputs of a text
    runtime/                      for who builds a runtime that holds no more than the files need
    selftest/                     real samples and what each file answers to them
    provenance/                   the recipe with every default, the device, the versions, what each stage left
    SHA256SUMS

Timings are no part of it: they differ from run to run, and stand in build.json beside it.
"""

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from edgepack.config import Frozen
from edgepack.errors import VerifyError
from edgepack.result import Build
from edgepack.store import digest, write_atomic

if TYPE_CHECKING:
    from edgepack.datasets import Signature
    from edgepack.device import Device
    from edgepack.recipe import Recipe
    from edgepack.work import Work

Role = Literal["deploy", "build", "test", "provenance"]
SCHEMA: Literal["edgepack.bundle/1"] = "edgepack.bundle/1"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest date a zip can hold
_ROLES: dict[str, Role] = {
    "models": "deploy",
    "io": "deploy",
    "runtime": "build",
    "selftest": "test",
    "provenance": "provenance",
}
RUNTIME_FILE = "runtime-"  # the beginning of the name, in the store, of a file for runtime/

Files = dict[str, bytes]  # path inside the bundle -> content


def write(build: Build, recipe: "Recipe", device: "Device", work: "Work", folder: Path) -> Build:
    """Write `<recipe>.zip` and `bundle/` into `folder`; gives the build that knows them."""
    files = _contents(build, recipe, device, work)
    packed = pack(files)
    write_atomic(folder / f"{recipe.name}.zip", packed)
    _unpack(files, folder / "bundle")
    sha = hashlib.sha256(packed).hexdigest()
    result = build.model_copy(update={"bundle": f"{recipe.name}.zip", "bundle_sha256": sha})
    result.save(folder / "build.json")
    return result


def remove(folder: Path, name: str) -> None:
    (folder / f"{name}.zip").unlink(missing_ok=True)
    shutil.rmtree(folder / "bundle", ignore_errors=True)


def pack(files: Files) -> bytes:
    """A zip that depends on the files' names and contents only: sorted, stored, one date, one mode."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(files):
            info = zipfile.ZipInfo(path, date_time=_EPOCH)
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, files[path])
    return buffer.getvalue()


class File(Frozen):
    path: str
    bytes: int
    sha256: str
    role: Role


class Manifest(Frozen):
    """The manifest of a bundle. `content_digest` is over the files that an app ships, those of role deploy."""

    schema_: Literal["edgepack.bundle/1"] = Field(default=SCHEMA, alias="schema")
    name: str
    task: str
    device: str
    runtimes: dict[str, dict[str, str]]
    files: tuple[File, ...]
    content_digest: str


def verify(bundle: Path) -> Manifest:
    """The manifest of a bundle that is whole. Raises VerifyError naming everything that is wrong with it."""
    return read(bundle)[0]


def read(bundle: Path) -> tuple[Manifest, Files]:
    """The manifest and every file of a bundle, a zip or its folder, that is whole. Raises VerifyError as `verify`."""
    files = _read_folder(bundle) if bundle.is_dir() else _read_zip(bundle)
    manifest = _manifest(files)
    problems = [*_differences(manifest, files), *_sums(manifest, files)]
    if problems:
        listed = "\n".join(f"  {each}" for each in problems)
        raise VerifyError(f"{bundle} is not what its manifest says:\n{listed}", "do not ship it: build it again")
    return manifest, files


def _contents(build: Build, recipe: "Recipe", device: "Device", work: "Work") -> Files:
    files: Files = {}
    for artifact in build.shipped():
        _, path = work.file(artifact.label)
        files[f"models/{recipe.name}{path.suffix}"] = path.read_bytes()
    files.update(_runtime(build, recipe, work))
    files.update(beside(recipe, work.signature))
    files.update(_selftest(build, work))
    files["provenance/recipe.yaml"] = _yaml(recipe.resolved([record.decided for record in build.ledger[1:]]))
    files["provenance/device.yaml"] = _yaml(device.resolved())
    files["provenance/versions.json"] = _json(build.provenance["versions"])
    # A recipe with its decisions written in gives the same bundle, though its keys and notes differ.
    kept = {"stage", "parameters", "macs", "bytes", "accuracy"}
    stages = [record.model_dump(mode="json", include=kept) for record in build.ledger]
    files["provenance/stages.json"] = _json(stages)
    files["manifest.json"] = _json(_describe(build, recipe, device, files).model_dump(mode="json", by_alias=True))
    files["SHA256SUMS"] = _sum_lines({path: _sha(content) for path, content in files.items()})
    return files


def beside(recipe: "Recipe", signature: "Signature") -> Files:
    """What an app ships beside a model file: all else of role deploy."""
    files = {
        "io/signature.json": _json(_interface(signature)),
        "io/labels.txt": "".join(f"{label}\n" for label in signature.labels).encode(),
    }
    if attachments := getattr(recipe.data.module, "attachments", None):
        files.update({f"io/{name}": content for name, content in attachments(recipe.data.config).items()})
    return files


def _runtime(build: Build, recipe: "Recipe", work: "Work") -> Files:
    """What the exporters left for a build of the runtimes; of BUILDING.md each wrote its own part."""
    files: Files = {}
    parts = []
    for artifact in build.shipped():
        entry = work.entry(f"export {artifact.label}")
        made = {name: (entry.path / name).read_bytes() for name in sorted(entry.files) if name.startswith(RUNTIME_FILE)}
        model = f"models/{recipe.name}{Path(artifact.file).suffix}"
        for name, content in made.items():
            if name == f"{RUNTIME_FILE}BUILDING.md":
                start = f"# {artifact.runtime}\n\nWith `BUNDLE` the folder of this bundle and `MODEL={model}`. "
                parts.append(start.encode() + content)
            else:
                files[f"runtime/{name.removeprefix(RUNTIME_FILE)}"] = content
    return files | ({"runtime/BUILDING.md": b"\n".join(parts)} if parts else {})


def _interface(signature: "Signature") -> dict[str, Any]:
    """What an app feeds the files and what it gets, one sample at a time."""
    inputs = [{"name": spec.name, "shape": [1, *spec.shape], "dtype": spec.dtype} for spec in signature.inputs]
    output = {"name": "logits", "shape": [1, len(signature.labels)], "dtype": "float32"}
    return {"inputs": inputs, "outputs": [output], "preprocessing": signature.preprocessing}


def _selftest(build: Build, work: "Work") -> Files:
    """Real samples of the test split, and for each file the logits it must answer with."""
    entry = work.entry("reference outputs")
    files = {
        f"selftest/{name}": (entry.path / name).read_bytes() for name in sorted(entry.files) if name.startswith("case-")
    }
    outcomes = {each.format: work.entry(f"evaluate {each.label}").outcome for each in build.shipped()}
    answers = {name: outcome["cases"] for name, outcome in outcomes.items() if "cases" in outcome}
    not_run = {name: outcome["not_run"] for name, outcome in outcomes.items() if "not_run" in outcome}
    cases: list[dict[str, Any]] = [
        {
            "inputs": [f"case-{i}-{spec.name}.bin" for spec in work.signature.inputs],
            "target": target,
            "expected": {name: logits[i] for name, logits in answers.items()},
        }
        for i, target in enumerate(entry.outcome["targets"])
    ]
    for i, case in enumerate(cases):
        if f"selftest/case-{i}.txt" in files:
            case["text"] = f"case-{i}.txt"
    tolerance = "decisions must be equal; logits may differ in their last bits on another processor"
    facts = {"cases": cases, "byte_order": "little", "tolerance": tolerance}
    files["selftest/cases.json"] = _json({**facts, **({"not_run": not_run} if not_run else {})})
    return files


def _describe(build: Build, recipe: "Recipe", device: "Device", files: Files) -> Manifest:
    versions = build.provenance["versions"]
    runtimes = {
        artifact.runtime: {
            "file": f"models/{recipe.name}{Path(artifact.file).suffix}",
            "format": artifact.format,
            "version": versions[artifact.runtime],
        }
        for artifact in build.shipped()
    }
    listed = tuple(_file(path, files[path]) for path in sorted(files))
    return Manifest(
        schema=SCHEMA,
        name=recipe.name,
        task=recipe.task,
        device=device.id,
        runtimes=runtimes,
        files=listed,
        content_digest=_content_digest(listed),
    )


def _file(path: str, content: bytes) -> File:
    return File(path=path, bytes=len(content), sha256=_sha(content), role=_ROLES[path.split("/")[0]])


def _content_digest(files: Iterable[File]) -> str:
    return digest([[each.path, each.sha256] for each in files if each.role == "deploy"])


def _unpack(files: Files, folder: Path) -> None:
    """Swap the whole folder, so that an app's build never sees half of it."""
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for path, content in files.items():
        target = fresh / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    if folder.exists():
        folder.replace(old)
    fresh.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _read_folder(folder: Path) -> Files:
    files: Files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise VerifyError(f"{folder}: '{path.relative_to(folder)}' is a link; a bundle holds plain files")
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.read_bytes()
    return files


def _read_zip(path: Path) -> Files:
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise VerifyError(f"cannot read {path}: {error.strerror}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            members = archive.infolist()
            _refuse_tricks(path, members, len(packed))
            files = {member.filename: archive.read(member) for member in members}
    except VerifyError:
        raise
    except Exception as error:  # zipfile raises many kinds on bytes that are no zip
        raise VerifyError(f"{path} is not a whole zip file: {error}") from None
    if pack(files) != packed:
        raise VerifyError(f"{path} was not packed by edgepack, or changed since: its bytes are not those of its files")
    return files


def _refuse_tricks(path: Path, members: Iterable[zipfile.ZipInfo], length: int) -> None:
    seen: set[str] = set()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > length:
            raise VerifyError(f"{path} was not packed by edgepack: {member.filename!r} grows when it is unpacked")
        if not _safe(member.filename):
            raise VerifyError(f"{path}: {member.filename!r} would be written outside the bundle's folder")
        if member.filename in seen:
            raise VerifyError(f"{path}: {member.filename!r} is there twice")
        seen.add(member.filename)


def _safe(name: str) -> bool:
    path = PurePosixPath(name)
    plain = bool(name) and name.isprintable() and not {*"\\:"} & {*name}
    return plain and not path.is_absolute() and ".." not in path.parts


def _manifest(files: Files) -> "Manifest":
    if "manifest.json" not in files:
        raise VerifyError("there is no manifest.json: this is not an edgepack bundle")
    try:
        manifest = json.loads(files["manifest.json"])
        schema = manifest["schema"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise VerifyError("manifest.json does not describe a bundle") from None
    if schema != SCHEMA:
        raise VerifyError(f"the manifest has schema {schema!r}, this edgepack reads {SCHEMA!r}")
    try:
        checked = Manifest.model_validate_json(files["manifest.json"])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise VerifyError(f"manifest.json does not describe a bundle: {place}: {first['msg']}") from None
    paths = [each.path for each in checked.files]
    if not all(_safe(path) for path in paths):
        raise VerifyError("the manifest names a file outside the bundle")
    if len(set(paths)) != len(paths):
        raise VerifyError("the manifest names a file twice")
    return checked


def _differences(manifest: "Manifest", files: Files) -> Iterable[str]:
    listed = {each.path: each for each in manifest.files}
    for path, facts in listed.items():
        if path not in files:
            yield f"missing: {path}"
        elif (len(files[path]), _sha(files[path])) != (facts.bytes, facts.sha256):
            yield f"changed: {path}"
    for path in sorted({*files} - {*listed, "manifest.json", "SHA256SUMS"}):
        yield f"not in the manifest: {path if path.isprintable() else repr(path)}"
    if _content_digest(manifest.files) != manifest.content_digest:
        yield "changed: the content digest of manifest.json"


def _sums(manifest: Manifest, files: Files) -> Iterable[str]:
    """SHA256SUMS says what the manifest says, and the manifest's own hash."""
    known = {**{each.path: each.sha256 for each in manifest.files}, "manifest.json": _sha(files["manifest.json"])}
    if "SHA256SUMS" not in files:
        yield "missing: SHA256SUMS"
    elif files["SHA256SUMS"] != _sum_lines(known):
        yield "changed: SHA256SUMS or manifest.json"


def _sum_lines(hashes: dict[str, str]) -> bytes:
    return "".join(f"{hashes[path]}  {path}\n" for path in sorted(hashes)).encode()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def _yaml(value: Any) -> bytes:
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    buffer = io.BytesIO()
    yaml.dump(value, buffer)
    return buffer.getvalue()
