"""Write and verify manifest.json, which lists what a bundle holds."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from edgepack.core.errors import ExitCode, RecipeError, VerifyError
from edgepack.core.files import digest
from edgepack.core.frozen import Frozen
from edgepack.core.signature import labels
from edgepack.deliver.bundle.archive import MANIFEST, SUMS, Files, clash, read_folder, read_zip, safe
from edgepack.deliver.bundle.rendering import as_json

Role = Literal["deploy", "build", "test", "provenance", "doc"]
SCHEMA: Literal["edgepack.bundle/1"] = "edgepack.bundle/1"
_ROLES: dict[str, Role] = {
    "models": "deploy",
    "io": "deploy",
    "licences": "deploy",
    "runtime": "build",
    "selftest": "test",
    "provenance": "provenance",
}
PrintableText = Annotated[str, Field(pattern=r"^[^\p{Cc}\p{Zl}\p{Zp}]+$")]  # shown on terminals and in CI logs


class File(Frozen):
    path: str
    bytes: int = Field(ge=0)
    sha256: str
    role: Role


class EntryPoint(Frozen):
    """Where an app starts: the file to load and, if a file has several methods, the method to call."""

    file: str
    method: str | None = None


class Runtime(Frozen):
    """What a file needs: the runtime with the version it was made for, and a delegate if it is not a default one."""

    version: PrintableText
    format: PrintableText
    needs: PrintableText | None = None
    entry: EntryPoint


class TestSamples(Frozen):
    """How many samples of the test split the figures are of, if the recipe cuts it."""

    used: int = Field(ge=0)
    of: int = Field(ge=0)


class Source(Frozen):
    """What the model was made from. `fingerprint` changes if the data changes; without `test` all samples were used."""

    model: Any
    data: Any
    fingerprint: str
    test: TestSamples | None = None


class Manifest(Frozen):
    """The manifest of a bundle. `content_digest` is over the files that an app ships, those of role deploy.

    A `deploy_only` bundle contains no other files; its content digest is that of the full bundle, unless it was made
    for one runtime only.
    """

    schema_: Literal["edgepack.bundle/1"] = Field(default=SCHEMA, alias="schema")
    name: PrintableText
    version: PrintableText | None
    task: PrintableText
    device: PrintableText
    licence: PrintableText | None
    source: Source
    runtimes: dict[PrintableText, Runtime]
    deploy_only: bool
    files: tuple[File, ...]
    content_digest: str


class SchemaError(VerifyError):
    """The bundle may be valid: this edgepack is too old to read it."""

    code = ExitCode.USAGE


def verify(bundle: Path) -> Manifest:
    """Return the manifest of a valid bundle. Raises VerifyError listing all problems."""
    return read(bundle)[0]


def read(bundle: Path) -> tuple[Manifest, Files]:
    """Return the manifest and every file of a valid bundle, a zip or its folder. Raises VerifyError as `verify`."""
    files = read_folder(bundle, _sizes) if bundle.is_dir() else read_zip(bundle)
    manifest = _parsed(files)
    problems = [*_differences(manifest, files), *_sums(manifest, files), *_loose_ends(manifest), *_labels(files)]
    if problems:
        listed = "\n".join(f"  {each}" for each in problems)
        raise VerifyError(f"{bundle} is not what its manifest says:\n{listed}", "do not ship it; build it again")
    return manifest, files


def sealed(manifest: Manifest, files: Mapping[str, bytes]) -> Files:
    """Return the files with a matching manifest and sums; `files` and `content_digest` are computed here."""
    listed = tuple(_file(path, files[path]) for path in sorted(files))
    right = manifest.model_copy(update={"files": listed, "content_digest": _content_digest(listed)})
    whole = {**files, MANIFEST: as_json(right.model_dump(mode="json", by_alias=True))}
    return {**whole, SUMS: _sum_lines({path: _sha(content) for path, content in whole.items()})}


def deployed(manifest: Manifest, files: Mapping[str, bytes], runtime: str = "") -> Files:
    """Return only what an app ships, as a bundle; with `runtime` without the files for other runtimes.

    Raises RecipeError if the bundle has nothing for the runtime.
    """
    if runtime and runtime not in manifest.runtimes:
        known = ", ".join(sorted(manifest.runtimes)) or "none"
        raise RecipeError(f"the bundle has no file for the runtime {runtime!r}", f"it has files for: {known}")
    chosen = {name: facts for name, facts in manifest.runtimes.items() if runtime in ("", name)}
    others = {facts.entry.file for facts in manifest.runtimes.values()} - {each.entry.file for each in chosen.values()}
    kept = {each.path: files[each.path] for each in manifest.files if each.role == "deploy" and each.path not in others}
    return sealed(manifest.model_copy(update={"deploy_only": True, "runtimes": chosen}), kept)


def _role(path: str) -> Role:
    return _ROLES.get(path.split("/")[0], "doc")


def _file(path: str, content: bytes) -> File:
    return File(path=path, bytes=len(content), sha256=_sha(content), role=_role(path))


def _content_digest(files: Iterable[File]) -> str:
    return digest([[each.path, each.sha256] for each in files if each.role == "deploy"])


def _sizes(content: bytes) -> dict[str, int]:
    return {each.path: each.bytes for each in _parsed({MANIFEST: content}).files}


def _parsed(files: Mapping[str, bytes]) -> Manifest:
    if MANIFEST not in files:
        raise VerifyError("manifest.json not found: this is not an edgepack bundle")
    try:
        schema = json.loads(files[MANIFEST])["schema"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise VerifyError("manifest.json does not describe a bundle") from None
    _known(schema)
    try:
        manifest = Manifest.model_validate_json(files[MANIFEST])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(printable(str(part)) for part in first["loc"])  # may contain keys from the bundle
        raise VerifyError(f"manifest.json does not describe a bundle: {place}: {first['msg']}") from None
    paths = [each.path for each in manifest.files]
    if not all(safe(path) for path in paths):
        raise VerifyError("the manifest names a file outside the bundle")
    if twice := clash([MANIFEST, SUMS, *paths]):
        raise VerifyError(f"the manifest names {twice!r} twice, or as a file and a folder")
    return manifest


def _known(schema: Any) -> None:
    if schema == SCHEMA:
        return
    known, message = SCHEMA.partition("/")[0], f"the manifest has schema {schema!r}, this edgepack reads {SCHEMA!r}"
    if isinstance(schema, str) and re.fullmatch(rf"{re.escape(known)}/[1-9][0-9]{{0,8}}", schema):
        raise SchemaError(message, "a newer edgepack wrote it: update edgepack")
    raise VerifyError(message)


def _differences(manifest: Manifest, files: Files) -> Iterator[str]:
    listed = {each.path: each for each in manifest.files}
    for path, facts in listed.items():
        if path not in files:
            yield f"missing: {path}"
        elif (len(files[path]), _sha(files[path])) != (facts.bytes, facts.sha256):
            yield f"changed: {path}"
    for path in sorted({*files} - {*listed, MANIFEST, SUMS}):
        yield f"not in the manifest: {printable(path)}"
    if _content_digest(manifest.files) != manifest.content_digest:
        yield "changed: the content digest of manifest.json"


def printable(text: str) -> str:
    """Return the text as it is if printable, else as a literal, which terminals and CI logs do not interpret."""
    return text if text.isprintable() else repr(text)


def _sums(manifest: Manifest, files: Files) -> Iterator[str]:
    """Yield problems of SHA256SUMS: it must match the manifest and its hash."""
    known = {**{each.path: each.sha256 for each in manifest.files}, MANIFEST: _sha(files[MANIFEST])}
    if SUMS not in files:
        yield f"missing: {SUMS}"
    elif files[SUMS] != _sum_lines(known):
        yield f"changed: {SUMS} or {MANIFEST}"


def _loose_ends(manifest: Manifest) -> Iterator[str]:
    """Yield contradictions inside the manifest, even if every hash matches."""
    roles = {each.path: each.role for each in manifest.files}
    for path, role in roles.items():
        if role != _role(path):
            yield f"not a {role} file: {path}"
    for name, runtime in manifest.runtimes.items():
        if roles.get(runtime.entry.file) != "deploy":
            yield f"nothing for {name!r} to load: {runtime.entry.file!r}"
    if manifest.deploy_only and {*roles.values()} - {"deploy"}:
        yield "a --deploy-only bundle holds files that an app does not ship"


def _labels(files: Files) -> Iterator[str]:
    """Yield mistakes in the labels by which an app would show wrong names, even if no file was changed."""
    if "io/labels.txt" not in files or "io/signature.json" not in files:
        return
    try:
        found = labels.read(files["io/labels.txt"])
    except ValueError as error:
        yield f"io/labels.txt must have one label per line: {printable(str(error))}"
        return
    if (outputs := _outputs(files["io/signature.json"])) not in (None, len(found)):
        yield f"{len(found)} labels for {outputs} outputs: io/labels.txt"


def _outputs(signature: bytes) -> int | None:
    """Return the number of logits, if the file states it."""
    try:
        first = json.loads(signature)["outputs"][0]
        count = first["shape"][-1]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return count if isinstance(count, int) and first.get("name") == "logits" else None


def _sum_lines(hashes: Mapping[str, str]) -> bytes:
    return "".join(f"{hashes[path]}  {path}\n" for path in sorted(hashes)).encode()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
