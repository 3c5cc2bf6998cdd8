"""Every plugin of every kind keeps its contract, and another package can bring its own."""

import ast
import inspect
import json
import tarfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from itertools import product
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest
from factories import PROJECT, build, python, recipe_file, texts, tokenizer
from pydantic import BaseModel, ValidationError
from short_timings import SHORTENED

from edgepack.compress.contract import StageConfig
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.config.recipe import Place
from edgepack.core.errors import RecipeError
from edgepack.core.runtimes import RUNTIMES
from edgepack.core.signature import Signature

FOUND = [(kind, name) for kind in plugins.KINDS for name in plugins.names(kind)]
# What is None by default, and a function of these where a plugin has it.
MAY_BE_NONE = {
    "dry_run": ["candidate", "config", "quantization"],
    "operations": ["path", "quantization", "shapes"],
    "payload_operations": ["payload"],
    "payload_parts": ["payload", "named"],
    "prepare": ["device", "tell"],
    "smoothed": ["logits", "targets", "amount"],
    "weighted": ["logits", "targets", "weights", "amount"],
}
# The plugins that the pages of the contracts show as examples, by kind.
EXAMPLES = {
    "tasks": "brightness",
    "models": "linear",
    "datasets": "noise",
    "stages": "round",
    "quantizers": "shader",
    "exporters": "plain_onnx",
    "runners": "bench",
    "reports": "outcome",
    "trackers": "lines",
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
    for call in plugins.contract(kind).functions:
        asked = _parameters(getattr(plugins.contract(kind).page, call))[1:]
        keeps = ["loading"] if (kind, call) == ("datasets", "load") and module.KEEPS else []
        assert _parameters(getattr(module, call)) == asked + keeps, call


@pytest.mark.parametrize(("kind", "name"), FOUND)
def test_a_plugin_has_all_that_its_contract_names_and_of_its_type(kind: str, name: str) -> None:
    module = plugins.load(kind, name)
    for part, default in plugins.contract(kind).defaults.items():
        value = getattr(module, part)
        if part in plugins.contract(kind).functions:
            assert callable(value)
        elif part in MAY_BE_NONE:
            asked = MAY_BE_NONE[part]
            assert value is None or _parameters(value)[: len(asked)] == asked
            assert value is None or {*_parameters(value)[len(asked) :]} <= {"latency", "quantizer"}
        else:
            assert isinstance(value, str | None if default is None else type(default))


def _parameters(function: Callable[..., Any]) -> list[str]:
    return [*inspect.signature(function).parameters]


@_of("models", "datasets", "stages", "exporters", "runners", "trackers")
def test_settings_are_frozen_and_refuse_what_they_do_not_know(module: ModuleType) -> None:
    config: type[BaseModel] = module.Config
    assert config.model_config["frozen"]
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        config.model_validate({"no_such_setting": 1})
    json.dumps(config.model_json_schema())
    assert all(isinstance(text, str) and text for _, text in plugins.settings(module))


@_of("stages", "quantizers", "exporters")
def test_what_a_key_depends_on_is_declared(module: ModuleType) -> None:
    assert isinstance(module.VERSION, int)
    assert module.VERSION >= 1
    for library in module.LIBRARIES:
        try:
            version(library)
        except PackageNotFoundError:
            pytest.fail(f"{module.__name__} names {library}, which is not installed")


@_of("stages")
def test_a_stage_says_what_it_takes_gives_and_reads(module: ModuleType) -> None:
    assert {module.TAKES, module.GIVES} <= {"eager", "exported"}
    assert {*module.READS} <= {*Quantization.model_fields}
    assert isinstance(module.MAKES_TEACHER, bool)
    assert module.USES_QUANTIZER is (module.__name__ == "edgepack.compress.stages.quantize")


@_of("exporters")
def test_an_exporter_writes_a_file_that_the_worker_can_run(module: ModuleType) -> None:
    assert module.SUFFIX.startswith(".")
    assert module.RUNTIME in RUNTIMES


@_of("datasets")
def test_a_data_set_describes_itself_without_loading(module: ModuleType) -> None:
    config = _data(module)
    signature = module.describe(config)
    assert isinstance(signature, Signature)
    assert len(signature.labels) > 1 or signature.preprocessing["kind"] == "tokens"
    assert all(min(spec.shape) > 0 for spec in signature.inputs)
    assert module.fingerprint(config) == module.fingerprint(_data(module))
    assert all(isinstance(content, bytes) for content in module.attachments(config).values())
    assert all(isinstance(note, str) for note in module.notes(config))


def _data(module: ModuleType) -> BaseModel:
    """The least settings of a data set; where it cannot do without, files or a function are made for it."""
    from PIL import Image

    for name in ("cat/1", "cat/2", "cat/3", "dog/1", "dog/2", "dog/3"):
        Path("pets", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(f"pets/{name}.png")
    rows = (f"{kind}/{n}.png,{kind}\n" for kind in ("cat", "dog") for n in (1, 2, 3))
    Path("pets/labels.csv").write_text("path,label\n" + "".join(rows))
    with tarfile.open("pets.tar", "w") as shard:
        for kind, n in product(("cat", "dog"), (1, 2, 3)):
            for ending, content in (("png", Path(f"pets/{kind}/{n}.png").read_bytes()), ("cls", kind.encode())):
                member = tarfile.TarInfo(f"{kind}{n}.{ending}")
                member.size = len(content)
                shard.addfile(member, BytesIO(content))
    Path("pets_data.py").write_text("def load(): ...")
    lines = [json.dumps({"text": f"text {i}", "label": ("odd", "even")[i % 2]}) for i in range(18)]
    Path("news.jsonl").write_text("\n".join(lines))
    Path("news.csv").write_text("text,label\n" + "".join(f"{i},odd\n{i},even\n" for i in range(9)))
    for name in ("yes/1", "yes/2", "yes/3", "no/1", "no/2", "no/3"):
        Path("words", name).parent.mkdir(parents=True, exist_ok=True)
        Path(f"words/{name}.wav").touch()
    boxes = [{"id": i, "image_id": i, "bbox": [1, 1, 4, 4], "category_id": 1 + i % 2, "iscrowd": 0} for i in range(6)]
    pictures = [
        {"id": i, "file_name": f"{kind}/{n}.png", "width": 8, "height": 8}
        for i, (kind, n) in enumerate(product(("cat", "dog"), (1, 2, 3)))
    ]
    kinds = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    Path("pets.json").write_text(json.dumps({"images": pictures, "annotations": boxes, "categories": kinds}))
    words = {"tokenizer": tokenizer()}
    needed: dict[str, dict[str, Any]] = {
        "audio_folder": {"folder": "words"},
        "bbc_news": words,
        "coco": {"images": "pets", "annotations": "pets.json"},
        "corpus": {"texts": "bbc-news", "vocabulary": 300},
        "csv": {"file": "news.csv", **words},
        "huggingface": {"path": "news.jsonl", "text": "text", **words},
        "image_csv": {"file": "pets/labels.csv"},
        "image_folder": {"folder": "pets"},
        "object_scenes": {"of": {"digits": {}}},
        "python": {"function": "pets_data:load", "shape": (3, 8, 8), "labels": ("cat", "dog")},
        "segmentation_folder": {"images": "pets", "masks": "pets", "labels": ("cat", "dog")},
        "text_folder": {"folder": texts(), **words},
        "webdataset": {"shards": "pets.tar"},
    }
    config: BaseModel = module.Config.model_validate(needed.get(module.__name__.rpartition(".")[2], {}))
    return config


@_of("models")
def test_a_source_of_models_is_named_by_its_own_key(module: ModuleType) -> None:
    assert module.__name__.rpartition(".")[2] in module.Config.model_fields


@_of("runners")
def test_a_runner_says_what_its_answers_are_worth(module: ModuleType) -> None:
    assert isinstance(module.IS_LOCAL, bool)
    assert set(module.EVIDENCE) <= {"time", "memory", "predict", "delegates"}
    assert set(module.EVIDENCE.values()) <= {"measured", "emulated", "estimated"}


@_of("reports")
def test_a_report_is_made_of_the_build_alone(module: ModuleType) -> None:
    assert Path(module.FILE).name == module.FILE
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


def _install(site: Path, kind: str, name: str, source: str) -> None:
    """A package as pip would leave it, with one plugin in `other_<name>.py`."""
    info = site / f"other_{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"other_{name}.py").write_text(dedent(source))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: other_{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[edgepack.{kind}]\n{name} = other_{name}\n")


def _install_examples(site: Path) -> None:
    """Every example of the contracts' pages, as if another package published it."""
    for kind, name in EXAMPLES.items():
        page = inspect.cleandoc(plugins.contract(kind).page.__doc__ or "").splitlines()
        _install(site, kind, name, "\n".join(line for line in page if not line or line.startswith("    ")))


def test_another_installed_package_brings_a_stage(tmp_path: Path) -> None:
    site = tmp_path / "site"
    _install(
        site,
        "stages",
        "shake",
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


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages with the examples of the contracts, which this process finds too."""
    _install_examples(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name in ("_installed", "_entry_points"):
        monkeypatch.setattr(plugins, name, getattr(plugins, name).__wrapped__)
    monkeypatch.setattr(plugins, "load", plugins.load.__wrapped__)
    return tmp_path / "site"


@pytest.mark.parametrize(("kind", "name"), EXAMPLES.items())
def test_a_plugin_that_defines_only_what_is_required_has_every_default(kind: str, name: str, examples: Path) -> None:
    asked = plugins.contract(kind)
    source = (examples / f"other_{name}.py").read_text()
    module = plugins.load(kind, name)
    for part, default in asked.defaults.items():
        assert part not in source
        assert getattr(getattr(module, part), "__func__", getattr(module, part)) is default


def test_nobody_asks_whether_a_plugin_has_what_its_contract_gives() -> None:
    given = {part for kind in plugins.KINDS for part in (*plugins.contract(kind).defaults, *vars(StageConfig))}
    asking = [
        f"{file.relative_to(PROJECT)}:{call.lineno}"
        for file in PROJECT.glob("edgepack/**/*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("getattr", "hasattr")
        if isinstance(call.args[1], ast.Constant) and call.args[1].value in given
    ]
    assert asking == []


def test_what_is_abstract_or_has_only_a_type_is_required() -> None:
    assert plugins.contract("stages").required == ("TAKES", "GIVES", "VERSION", "Config", "run")
    assert plugins.contract("reports").required == ("FILE", "render")
    assert plugins.contract("tasks").required == ("Config", "metrics", "task")


def test_defaults_say_what_most_plugins_would(examples: Path) -> None:
    stage, exporter = plugins.choose("stages", "round"), plugins.choose("exporters", "plain_onnx")
    model, data = plugins.choose("models", {"linear": True}), plugins.choose("datasets", "noise")
    signature = data.module.describe(data.config)
    assert stage.module.incompatibility(stage.config, Place(quantization=Quantization())) == ""
    assert (stage.config.needs_timing, stage.config.budgets_used, stage.config.trainings) == (False, (), ())
    assert exporter.module.suffix(exporter.config) == exporter.module.SUFFIX
    assert exporter.module.suited(exporter.config, Quantization()) is exporter.config
    assert (exporter.module.unavailable(exporter.config), exporter.module.needs(exporter.config)) == ("", "")
    assert exporter.module.inspect(Path("m.onnx"), None) is None
    assert exporter.module.runtime_files(Path("m.onnx"), exporter.config) == {}
    assert model.module.incompatibility(model.config, signature) == ""
    assert (model.module.files(model.config), model.module.installed(model.config)) == ((), {})
    assert (data.module.files(data.config), data.module.notes(data.config)) == ((), ())
    assert (data.module.attachments(data.config), data.module.LICENCE) == ({}, "not stated")
    assert plugins.load("tasks", "brightness").incompatibility(None, signature) == ""


def test_a_recipe_may_consist_of_the_examples_alone(examples: Path) -> None:
    path = recipe_file(
        task="brightness",
        model={"linear": True},
        data={"noise": {}},
        device="devices/bench.yaml",
        stages=[{"train": {"epochs": 4}}, "round"],
        export=["plain_onnx"],
        budgets={"darkness": {"min": "60 %"}},
        trackers=["lines"],
    )
    Path("devices/bench.yaml").write_text("edgepack: 1\nname: the bench\nrunner: bench\n")
    for command, expected in (("check", "OK (train -> round"), ("build", "darkness")):
        ran = python(f"{SHORTENED}from edgepack.cli.main import main; main()", command, str(path), path=[examples])
        assert ran.code == 0, ran.out + ran.err
        assert expected in ran.out
    assert Path("dist/tiny/outcome.txt").read_text() == "tiny: exit code 0\n"
    assert "multiples of 0.01" in Path("dist/tiny/build.json").read_text()
    *curves, (status, metrics, tags) = map(json.loads, Path("runs/tiny.jsonl").read_text().splitlines())
    assert {curve for curve, _, _ in curves} == {
        "stages",
        "train/training on the labels/steps",
        "train/training on the labels/epochs",
    }
    assert (status, tags["verdicts/plain_onnx/darkness"]) == ("finished", "pass")
    assert metrics["budgets/plain_onnx/darkness/limit"] == 0.6


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("def run", "def walk", "must define TAKES, GIVES, VERSION, Config, run: run missing"),
        ("VERSION = 1", "import json as incompatibility", "must define TAKES, GIVES, VERSION, Config, run: VERSION"),
        ("VERSION", "import json as incompatibility\nVERSION", "must define these as functions: incompatibility"),
        (
            "compress.contract import StageConfig",
            "core.frozen import Frozen",
            "Config must be a subclass of edgepack.compress.contract.StageConfig",
        ),
    ],
)
def test_a_plugin_that_breaks_its_contract_is_told_so(
    right: str, wrong: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
        from edgepack.compress.contract import StageConfig as Config
        TAKES, GIVES = "eager", "eager"
        VERSION = 1
        def run(candidate, config, context): ...
        """
    _install(tmp_path / "site", "stages", "shake", dedent(source).replace(right, wrong))
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name in ("_installed", "_entry_points"):
        monkeypatch.setattr(plugins, name, getattr(plugins, name).__wrapped__)
    with pytest.raises(RecipeError, match=f"the stage 'shake'.*{message}") as caught:
        plugins.load.__wrapped__("stages", "shake")
    assert caught.value.hint == str(tmp_path / "site/other_shake.py")
