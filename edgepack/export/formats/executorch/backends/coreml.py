"""Apple's Core ML, for iOS 17, macOS 14 and later: the first whose operators know int8."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DELEGATE = NEEDS = "CoreMLBackend"
SOURCE = "backends/apple/coreml"
PACKAGE = "coremltools"
BUILD, LIBRARY = "-DEXECUTORCH_BUILD_COREML=ON", "coremldelegate"


def partitioners() -> list[Any]:
    import coremltools
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    specs = CoreMLBackend.generate_compile_specs(minimum_deployment_target=coremltools.target.iOS17)
    return [CoreMLPartitioner(compile_specs=specs)]


@contextmanager
def lowering() -> Iterator[None]:
    """Make Core ML packages reproducible: they contain random names, the date, and maps in random order."""
    from unittest.mock import patch

    from executorch.backends.apple.coreml import executorchcoreml

    pack = executorchcoreml.flatten_directory_contents

    def packed(folder: str) -> Any:
        _settle(Path(folder))
        return pack(folder)

    with patch.object(executorchcoreml, "flatten_directory_contents", packed):
        yield


def _settle(folder: Path) -> None:
    """Rewrite a Core ML package so that every export of the same model gives the same files.

    An app finds its compiled model by the identifier, so this is made from the content.
    """
    import json

    from coremltools.proto import Model_pb2

    [path] = folder.rglob("*.mlmodel")
    model = Model_pb2.Model()
    model.ParseFromString(path.read_bytes())
    model.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    path.write_bytes(model.SerializeToString(deterministic=True))
    items = folder / "model.mlpackage" / "Manifest.json"
    listed = json.loads(items.read_text())
    entries = sorted(listed["itemInfoEntries"].items(), key=lambda item: str(item[1]["path"]))
    names = {old: f"{i:08d}-0000-0000-0000-000000000000" for i, (old, _) in enumerate(entries)}
    listed["itemInfoEntries"] = {names[old]: facts for old, facts in entries}
    listed["rootModelIdentifier"] = names[listed["rootModelIdentifier"]]
    items.write_text(json.dumps(listed, indent=4))
    facts = folder / "metadata.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "identifier": f"edgepack_{_content(folder)}"}))


def _content(folder: Path) -> str:
    """Return the hash of the model's operators and weights."""
    from hashlib import sha256

    found = sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".mlmodel", ".bin"):
            found.update(path.read_bytes())
    return found.hexdigest()[:32]
