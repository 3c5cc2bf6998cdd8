"""sbom.cdx.json: the bundle's parts as a CycloneDX 1.6 bill of materials, with the model as a component.

Source: https://cyclonedx.org/docs/1.6/json/. Its serial number comes from the contents, and it holds no time, so the
same contents give the same bytes.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from edgepack.records.build import Build

if TYPE_CHECKING:
    from edgepack.core.signature import Signature
    from edgepack.deliver.bundle.manifest import Manifest

Json = dict[str, Any]


def bom(build: Build, manifest: "Manifest", signature: "Signature", files: Mapping[str, bytes]) -> Json:
    """Return the bill of materials; of `files`, those of the bundle, the exported ones are listed with their hashes."""
    models = [_file(runtime.entry.file, files[runtime.entry.file]) for runtime in manifest.runtimes.values()]
    libraries = [_library(name, runtime.version) for name, runtime in sorted(manifest.runtimes.items())]
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.name,
        **({"version": manifest.version} if manifest.version else {}),
        **({"licenses": [{"expression": manifest.licence}]} if manifest.licence else {}),
        "modelCard": _card(build, manifest, signature),
        "components": models,
    }
    parts = [model, _data(manifest), *libraries]
    made_of = {"ref": "model", "dependsOn": ["data", *(library["bom-ref"] for library in libraries)]}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid5(NAMESPACE_URL, _digest(files))}",
        "version": 1,
        "metadata": {
            "tools": {"components": [_tool(build)]},
            "component": {"type": "file", "bom-ref": "bundle", "name": f"{manifest.name}.zip"},
        },
        "components": parts,
        "dependencies": [{"ref": "bundle", "dependsOn": ["model"]}, made_of],
    }


def _digest(files: Mapping[str, bytes]) -> str:
    hashes = "".join(f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in sorted(files))
    return hashlib.sha256(hashes.encode()).hexdigest()


def _tool(build: Build) -> Json:
    return {"type": "application", "name": "edgepack", "version": build.provenance["versions"]["edgepack"]}


def _file(path: str, content: bytes) -> Json:
    hashes = [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}]
    return {"type": "file", "bom-ref": path, "name": path, "hashes": hashes}


def _library(name: str, version: str) -> Json:
    """Return a runtime as a component: it is not in the bundle, but the files were made for it."""
    purl = f"pkg:pypi/{name}@{version.partition('+')[0]}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "scope": "excluded", "purl": purl}


def _data(manifest: "Manifest") -> Json:
    (name,) = manifest.source.data
    told = {"fingerprint": manifest.source.fingerprint}
    if test := manifest.source.test:
        told["test samples"] = f"{test.used} of {test.of}"
    facts = {
        "type": "dataset",
        "name": name,
        "contents": {"properties": [{"name": f"edgepack:{name}", "value": value} for name, value in told.items()]},
    }
    return {"type": "data", "bom-ref": "data", "name": name, "data": [facts]}


def _card(build: Build, manifest: "Manifest", signature: "Signature") -> Json:
    inputs = [f"{spec.name}: {spec.dtype} {[1, *spec.shape]}" for spec in signature.inputs]
    outputs = [f"{spec.name}: {spec.dtype} {[1, *spec.shape]}" for spec in signature.outputs]
    limits = "The figures are of the test split of this data alone, in the runtimes and on the processor of the build."
    return {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": manifest.task,
            "datasets": [{"ref": "data"}],
            "inputs": [{"format": each} for each in inputs],
            "outputs": [{"format": each} for each in outputs],
        },
        "quantitativeAnalysis": {"performanceMetrics": [*_metrics(build)]},
        "considerations": {"technicalLimitations": [limits]},
    }


def _metrics(build: Build) -> Iterator[Json]:
    """Yield the figures that are equal in every build of the same recipe."""
    for artifact in build.shipped():
        for metric in (build.metric, "parity"):
            if found := build.find(metric, artifact.label):
                yield {"type": metric, "value": f"{found.value:.6g}", "slice": f"test split, {artifact.runtime}"}
