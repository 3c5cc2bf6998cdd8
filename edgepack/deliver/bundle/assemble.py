"""Assemble the files of a bundle from a finished build."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.core.errors import DeviceError
from edgepack.core.metrics import METRICS
from edgepack.core.signature import labels
from edgepack.deliver.bundle import card, examples, sbom
from edgepack.deliver.bundle.archive import Files
from edgepack.deliver.bundle.manifest import SCHEMA, EntryPoint, Manifest, Runtime, Source, sealed
from edgepack.deliver.bundle.rendering import as_json, as_yaml
from edgepack.records.build import Build

if TYPE_CHECKING:
    from edgepack.config.device import Device
    from edgepack.config.plugins import Choice
    from edgepack.config.recipe import Recipe
    from edgepack.core.signature import Signature
    from edgepack.deliver.bundle.parts import BundleParts
    from edgepack.records.artifact import Artifact

# Largest allowed difference of an output from the one at build time, as a share of the range of its numbers: integer
# kernels of other processors round differently. ExecuTorch and ONNX Runtime files of one model differ by up to 0.8 %.
TOLERANCE = 0.05
_AGREEMENT = 0.99  # with the outputs at build time, as the task defines it; labels must be equal
_WRITTEN = 4096  # numbers of a sample's outputs that cases.json holds; more are in files


def contents(build: Build, recipe: "Recipe", device: "Device", parts: "BundleParts") -> Files:
    """Return every file of the bundle. Raises DeviceError if a file named in the recipe is missing now."""
    build = _repeatable(build, device)
    files: Files = {}
    for artifact in build.shipped():
        files[_model(recipe, artifact)] = parts.models[artifact.label]
    files |= beside(recipe, parts.signature)
    files |= _runtime(build, recipe, parts)
    files |= _selftest(parts)
    files |= _provenance(build, recipe, device, parts)
    manifest = _manifest(build, recipe, device, parts)
    writing = [format for format, samples in parts.generated.items() if samples]
    files |= examples.render(manifest, parts.signature, parts.reading, recipe.task.plain(), writing)
    files |= {f"examples/{name}": content for name, content in _task(recipe, parts.signature).examples().items()}
    files["MODEL_CARD.md"] = card.render(
        build, manifest, parts.signature, parts.reading, recipe.task.plain(), elsewhere=is_elsewhere(device)
    )
    files["sbom.cdx.json"] = as_json(sbom.bom(build, manifest, parts.signature, files))
    return sealed(manifest, files)


def is_elsewhere(device: "Device") -> bool:
    """Return whether files run on another computer than this one when the device is available."""
    return device.runner.name != "host"


def _repeatable(build: Build, device: "Device") -> Build:
    """Return the build without figures that another build may lack: those measured on the device."""
    if not is_elsewhere(device):
        return build
    kept = tuple(each for each in build.measurements if not METRICS[each.metric].within)
    return build.model_copy(update={"measurements": kept})


def _model(recipe: "Recipe", artifact: "Artifact") -> str:
    return f"models/{recipe.name}{Path(artifact.file).suffix}"


def beside(recipe: "Recipe", signature: "Signature") -> Files:
    """Return what an app ships with a model file: all others of role deploy. Raises DeviceError as `contents` does."""
    return {**_io(recipe, signature), **_licences(recipe)}


def _io(recipe: "Recipe", signature: "Signature") -> Files:
    """Return the description of inputs and outputs for an app, for one sample at a time."""
    inputs = [{"name": spec.name, "shape": [1, *spec.shape], "dtype": spec.dtype} for spec in signature.inputs]
    outputs = [{"name": spec.name, "shape": [1, *spec.shape], "dtype": spec.dtype} for spec in signature.outputs]
    interface = {"inputs": inputs, "outputs": outputs, "preprocessing": signature.preprocessing}
    attachments: Files = recipe.data.module.attachments(recipe.data.config)
    attachments = {**attachments, **_task(recipe, signature).attachments()}
    return {
        "io/signature.json": as_json(interface),
        **({"io/labels.txt": labels.lines(signature.labels)} if signature.labels else {}),
        **{f"io/{name}": content for name, content in attachments.items()},
    }


def _task(recipe: "Recipe", signature: "Signature") -> Any:
    return recipe.task.module.task(recipe.task.config, signature)


def _licences(recipe: "Recipe") -> Files:
    stated = recipe.licence or "not stated: ask whoever built it, or write `licence:` into the recipe"
    files: Files = {}
    if recipe.licence_file:
        try:
            files["licences/model.txt"] = Path(recipe.licence_file).read_bytes()
        except OSError as error:
            raise DeviceError(f"cannot read the licence file {recipe.licence_file}: {error.strerror}") from error
        stated += ", in model.txt"
    lines = [
        "# Licences",
        "",
        f"- The model, in `models/` and `io/`: {stated}",
        f"- The samples in `selftest/`, from the data `{recipe.data.name}`: {recipe.data.module.LICENCE}",
        "- The runtimes are no part of this bundle; an app that links one ships that one's licence.",
    ]
    return {**files, "licences/README.md": "\n".join([*lines, ""]).encode()}


def _runtime(build: Build, recipe: "Recipe", parts: "BundleParts") -> Files:
    """Return the exporters' files for building the runtimes; BUILDING.md joins their parts."""
    files: Files = {}
    building = []
    for artifact in build.shipped():
        for name, content in parts.runtime[artifact.label].items():
            if name == "BUILDING.md":
                text = f"With `BUNDLE` the folder of this bundle and `MODEL={_model(recipe, artifact)}`."
                building.append(f"# {artifact.runtime}\n\n{text} ".encode() + content)
            else:
                files[f"runtime/{name}"] = content.replace(b"$MODEL", Path(_model(recipe, artifact)).name.encode())
    return files | ({"runtime/BUILDING.md": b"\n".join(building)} if building else {})


def _selftest(parts: "BundleParts") -> Files:
    """Return real samples of the test split, and the expected outputs of each file."""
    files = {f"selftest/{name}": content for name, content in parts.samples.items()}
    expected: list[dict[str, Any]] = [{} for _ in parts.targets]
    for format, answers in parts.answers.items():
        for i, answer in enumerate(answers):
            expected[i][format], beside = _expected(f"case-{i}-{format}", answer)
            files |= beside
    cases: list[dict[str, Any]] = [
        {
            "inputs": [f"case-{i}-{spec.name}.bin" for spec in parts.signature.inputs],
            "target": target,
            "expected": expected[i],
        }
        for i, target in enumerate(parts.targets)
    ]
    for i, case in enumerate(cases):
        if f"selftest/case-{i}.txt" in files:
            case["text"] = f"case-{i}.txt"
        texts = {format: samples[i] for format, samples in parts.generated.items() if samples}
        if texts:
            case["generated"] = {format: text.model_dump(mode="json") for format, text in texts.items()}
    tolerance: dict[str, Any] = {"decision": "equal", "logits": TOLERANCE}
    if [(spec.name, len(spec.shape)) for spec in parts.signature.outputs] != [("logits", 1)]:
        tolerance = {"agreement": _AGREEMENT, **({"outputs": TOLERANCE} if parts.steady else {})}
    facts = {"cases": cases, "byte_order": "little", "tolerance": tolerance}
    files["selftest/cases.json"] = as_json({**facts, **({"not_run": dict(parts.not_run)} if parts.not_run else {})})
    return files


def _expected(name: str, answer: "Mapping[str, Sequence[float]]") -> tuple[Any, Files]:
    """Return a sample's outputs as cases.json has them, and the files for what is large."""
    if sum(map(len, answer.values())) <= _WRITTEN:
        return next(iter(answer.values())) if len(answer) == 1 else dict(answer), {}
    named = {output: f"{name}-{output}.bin" for output in answer}
    return named, {
        f"selftest/{file}": struct.pack(f"<{len(answer[output])}f", *answer[output]) for output, file in named.items()
    }


def _provenance(build: Build, recipe: "Recipe", device: "Device", parts: "BundleParts") -> Files:
    # A recipe with its decisions filled in gives the same bundle, though its keys and notes differ.
    kept = ("parameters", "macs", "bytes")
    stages = [
        {"stage": each.stage, **{name: getattr(each, name) for name in kept}, each.metric: each.score}
        for each in build.ledger
    ]
    return {
        "provenance/recipe.yaml": as_yaml(recipe.plain(parts.decided)),
        "provenance/device.yaml": as_yaml(device.plain()),
        "provenance/versions.json": as_json(build.provenance["versions"]),
        "provenance/stages.json": as_json(stages),
    }


def _manifest(build: Build, recipe: "Recipe", device: "Device", parts: "BundleParts") -> Manifest:
    """Return the manifest without the list of files, which is added later."""
    exporters = {choice.name: choice for choice in recipe.exporters}
    versions = build.provenance["versions"]
    data = recipe.data
    return Manifest(
        schema=SCHEMA,
        name=recipe.name,
        version=recipe.version,
        task=recipe.task.name,
        device=device.id,
        licence=recipe.licence,
        source=Source(
            model=recipe.model.plain(),
            data={data.name: data.plain()},
            fingerprint=data.module.fingerprint(data.config),
            test=parts.test,
        ),
        runtimes={
            artifact.runtime: _described(artifact, exporters[artifact.format], versions, _model(recipe, artifact))
            for artifact in build.shipped()
        },
        deploy_only=False,
        files=(),
        content_digest="",
    )


def _described(artifact: "Artifact", exporter: "Choice", versions: dict[str, str], file: str) -> Runtime:
    module = exporter.module
    return Runtime(
        version=versions[artifact.runtime],
        format=artifact.format,
        needs=module.needs(exporter.config) or None,
        entry=EntryPoint(file=file, method=module.METHOD),
    )
