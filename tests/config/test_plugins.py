"""Every plugin of every kind keeps its contract, and another package can bring its own."""

import inspect
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
from factories import build, python, recipe_file, texts, tokenizer
from pydantic import BaseModel, ValidationError

from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.core.errors import RecipeError
from edgepack.core.signature import Signature
from edgepack.measure import worker

FOUND = [(kind, name) for kind in plugins.KINDS for name in plugins.names(kind)]
CALLS = {
    "tasks": {"loss": 2, "distill": 3, "score": 2, "decide": 1},
    "models": {"trained": 2, "misfit": 2, "build": 2},
    "datasets": {"describe": 1, "fingerprint": 1, "load": 1},
    "stages": {"run": 3},
    "exporters": {"export": 3},
    "runners": {"connect": 1},
    "reports": {},
}


def _of(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "module",
        [plugins.load(kind, name) for kind, name in FOUND if kind in kinds],
        ids=lambda module: module.__name__.removeprefix("edgepack."),
    )


def test_there_is_a_plugin_of_every_kind() -> None:
    assert {kind for kind, _ in FOUND} == {*plugins.KINDS}


@pytest.mark.parametrize(("kind", "name"), FOUND)
def test_a_plugin_has_a_sentence_on_what_it_does_and_the_functions_of_its_kind(kind: str, name: str) -> None:
    module = plugins.load(kind, name)
    assert plugins.summary(module).endswith((".", ":"))
    for call, arguments in CALLS[kind].items():
        assert len(inspect.signature(getattr(module, call)).parameters) == arguments


@_of("models", "datasets", "stages", "exporters", "runners")
def test_settings_are_frozen_and_refuse_what_they_do_not_know(module: ModuleType) -> None:
    config: type[BaseModel] = module.Config
    assert config.model_config["frozen"]
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        config.model_validate({"no_such_setting": 1})
    json.dumps(config.model_json_schema())
    assert all(isinstance(text, str) and text for _, text in plugins.settings(module))


@_of("stages", "exporters")
def test_what_a_key_depends_on_is_declared(module: ModuleType) -> None:
    assert isinstance(module.VERSION, int)
    assert module.VERSION >= 1
    for library in getattr(module, "LIBRARIES", ()):
        try:
            version(library)
        except PackageNotFoundError:
            pytest.fail(f"{module.__name__} names {library}, which is not installed")


@_of("stages")
def test_a_stage_says_what_it_takes_gives_and_reads(module: ModuleType) -> None:
    assert {module.TAKES, module.GIVES} <= {"eager", "exported"}
    assert {*getattr(module, "READS", ())} <= {*Quantization.model_fields}
    assert isinstance(getattr(module, "MAKES_TEACHER", False), bool)


@_of("exporters")
def test_an_exporter_writes_a_file_that_the_worker_can_run(module: ModuleType) -> None:
    assert module.SUFFIX.startswith(".")
    assert module.RUNTIME in worker.RUNTIMES
    for optional in ("inspect", "runtime_files"):
        assert not hasattr(module, optional) or len(inspect.signature(getattr(module, optional)).parameters) == 2


@_of("datasets")
def test_a_data_set_describes_itself_without_loading(module: ModuleType) -> None:
    config = _data(module)
    signature = module.describe(config)
    assert isinstance(signature, Signature)
    assert len(signature.labels) > 1
    assert all(min(spec.shape) > 0 for spec in signature.inputs)
    assert module.fingerprint(config) == module.fingerprint(_data(module))
    if attachments := getattr(module, "attachments", None):
        assert all(isinstance(content, bytes) for content in attachments(config).values())


def _data(module: ModuleType) -> BaseModel:
    """The least settings of a data set; where it cannot do without, files or a function are made for it."""
    from PIL import Image

    for name in ("cat/1", "cat/2", "cat/3", "dog/1", "dog/2", "dog/3"):
        Path("pets", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(f"pets/{name}.png")
    Path("pets_data.py").write_text("def load(): ...")
    Path("news.csv").write_text("text,label\n" + "".join(f"{i},odd\n{i},even\n" for i in range(9)))
    words = {"tokenizer": tokenizer()}
    needed: dict[str, dict[str, Any]] = {
        "bbc_news": words,
        "csv": {"file": "news.csv", **words},
        "image_folder": {"folder": "pets"},
        "python": {"function": "pets_data:load", "shape": (3, 8, 8), "labels": ("cat", "dog")},
        "text_folder": {"folder": texts(), **words},
    }
    config: BaseModel = module.Config.model_validate(needed.get(module.__name__.rpartition(".")[2], {}))
    return config


@_of("models")
def test_a_source_of_models_is_named_by_its_own_key(module: ModuleType) -> None:
    assert module.__name__.rpartition(".")[2] in module.Config.model_fields


@_of("runners")
def test_a_runner_says_what_its_answers_are_worth(module: ModuleType) -> None:
    module.Config()
    assert isinstance(module.NEAR, bool)
    assert set(module.EVIDENCE) <= {"time", "memory", "predict", "delegates"}
    assert set(module.EVIDENCE.values()) <= {"measured", "emulated", "estimated"}


@_of("reports")
def test_a_report_is_made_of_the_build_alone(module: ModuleType) -> None:
    if getattr(module, "FILE", ""):
        assert isinstance(module.render(build()), str)


def test_a_plugin_is_chosen_by_name_alone_or_with_settings() -> None:
    assert plugins.choose("stages", "quantize").plain()["epochs"] == 3
    assert plugins.choose("stages", {"quantize": {"epochs": 1}}).plain()["epochs"] == 1
    assert plugins.choose("stages", {"quantize": None}) == plugins.choose("stages", "quantize")
    assert plugins.choose("models", {"torchvision": "resnet18", "width": "50 %"}).plain()["width"] == "50 %"


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_an_unknown_plugin_says_which_there_are(kind: str) -> None:
    with pytest.raises(RecipeError, match=r"unknown .* 'nonsense' \(allowed: \w+"):
        plugins.load(kind, "nonsense")


def _install(folder: Path, source: str) -> Path:
    """A package as pip would leave it, with a stage `shake` in `shaking.py`."""
    (folder / "shaking.py").write_text(dedent(source))
    info = folder / "shaking-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shaking\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgepack.stages]\nshake = shaking\n")
    return folder


def test_another_installed_package_brings_a_stage(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    _install(
        site,
        '''
        """Shake the weights until something falls out."""
        from edgepack.compress.contract import StageConfig

        TAKES, GIVES = "eager", "eager"
        VERSION = 1

        class Config(StageConfig):
            strength: int = 3

        def run(candidate, config, context):
            return candidate
        ''',
    )
    path = recipe_file(stages=["train", {"shake": {"strength": 5}}])
    for command, expected in (
        (("stages",), "Shake the weights until something falls out."),
        (("check", str(path)), "train -> shake"),
        (("plan", str(path)), "shake                          run: first time"),
        (("check", str(path), "--set", "stages.shake.strenth=1"), "did you mean 'strength'?"),
        (("check", str(path), "--set", "stages=[train, shaek]"), "did you mean 'shake'?"),
    ):
        ran = python("from edgepack.cli.main import main; main()", *command, path=[site])
        assert expected in ran.out + ran.err
    assert "unknown stage 'shake'" in python("from edgepack.cli.main import main; main()", "check", str(path)).err
