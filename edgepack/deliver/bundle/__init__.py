"""The bundle: what a release ships, byte for byte the same on the same versions, processor type and threads.

    manifest.json                 what it is, and every file with its size, sha256 and role
    models/                       the exported files
    io/signature.json labels.txt  names, shapes, types, preprocessing, labels
    io/tokenizer.json             what makes the inputs of a text
    io/anchors.bin detection.json what makes boxes of a detector's outputs
    licences/                     what may be done with the model and the samples, as far as it was stated
    runtime/                      for who builds a runtime that holds no more than the files need
    examples/<runtime>/           how an app loads and runs the files: Kotlin, Swift, Python
    selftest/                     real samples, what each file answers to them, and how close an answer must come
    provenance/                   the recipe with every default, the device, the versions, what each stage left
    MODEL_CARD.md sbom.cdx.json   for people, and for programs that keep account of components
    SHA256SUMS

Of these an app ships models/, io/ and licences/: the role "deploy", which `unpack --deploy-only` gives alone. With
`--runtime` it leaves out the other runtimes' files: that is what the budgets size.deploy and size.download count.

Timings are no part of it, nor a verdict, which stands on them: they differ from run to run, and stand in build.json
beside it. Nor is what another device answered, or how well: selftest/ holds this computer's answers then, so that the
bundle is the same whether the device was there or not. The budgets as they were declared are in provenance/recipe.yaml.
Nor is the commit that the recipe stood at: one that changed nothing would change every byte. A signature lies beside
the bundle too.
"""

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.core.errors import DeviceError, RecipeError, VerifyError
from edgepack.core.files import write_atomic
from edgepack.deliver.bundle.archive import pack, swap
from edgepack.deliver.bundle.manifest import Manifest, deployed, read, verify

if TYPE_CHECKING:
    from edgepack.config.device import Device
    from edgepack.config.recipe import Recipe
    from edgepack.deliver.bundle.parts import BundleParts
    from edgepack.records.build import Build


__all__ = ["RUNTIME_FILE", "Files", "Manifest", "pack", "read", "remove", "unpack", "verify", "write"]


def write(build: "Build", recipe: "Recipe", device: "Device", parts: "BundleParts", folder: Path) -> "Build":
    """Write `<recipe>.zip` and `bundle/` into `folder`; returns the build with their names and digests."""
    from edgepack.deliver.bundle.assemble import contents

    files = contents(build, recipe, device, parts)
    packed = pack(files)
    write_atomic(folder / f"{recipe.name}.zip", packed)
    swap(files, folder / "bundle")
    sha = hashlib.sha256(packed).hexdigest()
    result = build.model_copy(update={"bundle": f"{recipe.name}.zip", "bundle_sha256": sha})
    result.save(folder / "build.json")
    return result


def unpack(bundle: Path, target: Path, *, deploy_only: bool = False, runtime: str = "") -> Manifest:
    """Verify a bundle and write its files to `target`: a zip if the name ends so, else a folder.

    With `deploy_only` only what an app ships; with `runtime` only what an app with this runtime ships. An existing
    target is replaced only if it is a bundle too. Raises VerifyError as `verify`, RecipeError if something else is in
    the way or there is no file for `runtime`, and DeviceError if `target` cannot be written.
    """
    manifest, files = read(bundle)
    target = target.resolve()
    _refuse(bundle.resolve(), target)
    chosen = deployed(manifest, files, runtime) if deploy_only else files
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".zip":
            write_atomic(target, pack(chosen))
        else:
            swap(chosen, target)
    except OSError as error:
        raise DeviceError(f"cannot write {target}: {error.strerror}", "choose another target") from error
    return verify(target)


def _refuse(bundle: Path, target: Path) -> None:
    """Raises RecipeError unless the existing target is a complete bundle without other files."""
    if target == bundle or bundle in target.parents:
        raise RecipeError(f"{target} is the folder of the bundle itself", "choose another target")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        verify(target)
    except VerifyError:
        raise RecipeError(
            f"{target} already exists and is not a bundle", "choose another target or remove it"
        ) from None


def remove(folder: Path, name: str) -> None:
    (folder / f"{name}.zip").unlink(missing_ok=True)
    shutil.rmtree(folder / "bundle", ignore_errors=True)
