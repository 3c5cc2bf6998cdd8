"""What a bundle tells of its model: the card, the bill of materials, the licences, the examples."""

import re
from pathlib import Path
from typing import Any

import pytest
from bundle_factories import TEXTS, bundle, text_files
from factories import build, measurement, python, runtime, sealed

from edgepack.config.recipe_reading import load_recipe
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.texts import tokenizer
from edgepack.deliver.bundle import Manifest, card, examples, sbom, unpack
from edgepack.deliver.bundle.assemble import _licences
from edgepack.deliver.bundle.rendering import as_json
from edgepack.records.build import Build

PICTURES = Signature(inputs=(TensorSpec(name="input", shape=(1, 8, 8)),), labels=("zero", "one"))
WORDS = Signature(
    inputs=tuple(TensorSpec(name=name, shape=(8,), dtype="int64") for name in ("input_ids", "attention_mask")),
    labels=("money", "sport"),
    preprocessing={"kind": "text"},
)
NUMBERS = Signature(inputs=PICTURES.inputs, labels=("age", "height"), outputs=(TensorSpec(name="values", shape=(2,)),))
BOXES = Signature(
    inputs=PICTURES.inputs,
    outputs=(TensorSpec(name="boxes", shape=(5, 4)), TensorSpec(name="scores", shape=(5,))),
)
RUNTIMES = {"onnxruntime": runtime(), "executorch": {**runtime("models/tiny.pte", "executorch")}}
RUNTIMES["executorch"]["entry"]["method"] = "forward"


def _manifest(**changes: Any) -> Manifest:
    facts = {"runtimes": RUNTIMES, **changes}
    files = sealed({each["entry"]["file"]: b"x" for each in facts["runtimes"].values()}, **facts)
    return Manifest.model_validate_json(files["manifest.json"])


def _build() -> Build:
    figures = (
        ("size", 5e5, "onnx"),
        ("accuracy", 0.975, "onnx"),
        ("parity", 0.99, "onnx"),
        ("accuracy", 1, "teacher (onnx)"),
    )
    return build(measurements=(*(measurement(*each) for each in figures), measurement("latency.p50", 1.234)))


def test_the_card_tells_how_good_the_files_are_and_no_timings() -> None:
    text = card.render(_build(), _manifest(version="1.2.0"), PICTURES, "label").decode()
    assert text.startswith("# tiny 1.2.0\n\nImage classification in 2 classes, for `board`.\n")
    assert "| `models/tiny.onnx` | onnxruntime 1 | 500 kB | 97.5 % | 100 % | 99 % |" in text
    assert "- Input `input`: float32 [1, 1, 8, 8]" in text
    assert "| train | 1,000 | 5,000 | 4 kB | 98 % |" in text
    assert (
        "MIT See `licences/`." in text
        and "Not stated." in card.render(_build(), _manifest(licence=None), PICTURES).decode()
    )
    assert not re.search(r"1[.,]23|latency|\bms\b|seconds", text)


@pytest.mark.parametrize(
    ("task", "signature", "reading", "told"),
    [
        (
            "image_classification",
            PICTURES,
            "label",
            "`logits`: float32 [1, 2]; the largest is the label, by its line in",
        ),
        ("multi_label_classification", PICTURES, "tags", "which is given above 0.25"),
        ("regression", NUMBERS, "values", "`values`: float32 [1, 2]; their names are the lines of `io/labels.txt`"),
        ("detection", BOXES, "shapes", "- Output `boxes`: float32 [1, 5, 4]\n- Output `scores`: float32 [1, 5]\n"),
    ],
)
def test_the_card_tells_what_the_outputs_mean(task: str, signature: Signature, reading: str, told: str) -> None:
    text = card.render(_build(), _manifest(task=task), signature, reading, {"threshold": 0.25}).decode()
    titles = {"values": "Regression of 2 numbers", "tags": "with 2 labels", "shapes": "Detection, for `board`"}
    assert told in text and titles.get(reading, "Image classification in 2 classes") in text
    assert ("decides" in text, "classes," in text) == (reading == "label",) * 2


def test_the_card_names_what_it_was_made_from() -> None:
    assert "Made from `torchvision: resnet18` on `digits`;" in card.render(_build(), _manifest(), PICTURES).decode()


def test_what_was_not_run_has_no_figures() -> None:
    text = card.render(build(measurements=()), _manifest(), PICTURES).decode()
    assert "| 500 kB | not run | not run | not run |" in text


def test_the_bill_of_materials_names_the_model_its_files_and_its_runtimes() -> None:
    files = {"models/tiny.onnx": b"a", "models/tiny.pte": b"b"}
    bom = sbom.bom(_build(), _manifest(version="1.2.0"), PICTURES, files)
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.6", 1)
    model = bom["components"][0]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "tiny", "1.2.0")
    assert model["licenses"] == [{"expression": "MIT"}]
    assert [each["name"] for each in model["components"]] == ["models/tiny.onnx", "models/tiny.pte"]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert [(each["type"], each["value"]) for each in metrics] == [("accuracy", "0.975"), ("parity", "0.99")]
    assert {each["purl"] for each in bom["components"] if "purl" in each} == {
        "pkg:pypi/onnxruntime@1",
        "pkg:pypi/executorch@1",
    }
    known = {"bundle", "model", *(each["bom-ref"] for each in bom["components"])}
    assert {ref for each in bom["dependencies"] for ref in (each["ref"], *each["dependsOn"])} <= known


@pytest.mark.parametrize("licence", ["MIT", "MIT OR Apache-2.0", None])
def test_the_bill_of_materials_keeps_to_the_schema(licence: str | None) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    files = {"models/tiny.onnx": b"a", "models/tiny.pte": b"b"}
    for signature, version in ((PICTURES, "1.2.0"), (WORDS, None)):
        made = as_json(sbom.bom(_build(), _manifest(version=version, licence=licence), signature, files)).decode()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(made) is None
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(made.replace('"library"', '"novel"')) is not None


def test_the_bill_of_materials_depends_on_the_contents_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def bom(content: bytes) -> dict[str, Any]:
        return sbom.bom(_build(), _manifest(), PICTURES, {"models/tiny.onnx": content, "models/tiny.pte": b"b"})

    first = bom(b"a")
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert bom(b"a") == first
    assert bom(b"other")["serialNumber"] != first["serialNumber"]


@pytest.mark.parametrize("licence", [None, "Apache-2.0"])
def test_what_was_stated_of_licences(licence: str | None) -> None:
    Path("LICENSE").write_text("the text")
    text = Path("recipes/quickstart.yaml").read_text()
    licensed = f"licence: {licence}\nlicence_file: LICENSE\n" if licence else ""
    Path("recipes/quickstart.yaml").write_text(text + licensed)
    files = _licences(load_recipe("quickstart"))
    page = files["licences/README.md"].decode()
    assert "from the data `digits`: CC-BY-4.0" in page
    assert (f"`io/`: {licence}, in model.txt" if licence else "`io/`: not stated") in page
    assert files.get("licences/model.txt") == (b"the text" if licence else None)


def test_the_python_example_labels_texts() -> None:
    manifest = _manifest(runtimes={"onnxruntime": runtime("models/news.onnx")})
    contents = {**text_files(), **examples.render(manifest, WORDS, "label")}
    unpack(bundle(contents), Path("unpacked"))
    program = Path("unpacked/examples/onnxruntime/load.py").read_text()
    command = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    ran = python(command, "unpacked/examples/onnxruntime/load.py")
    assert (ran.code, ran.out) == (0, "money: case-0-input_ids.bin\nsport: case-1-input_ids.bin\n"), ran.err
    ran = python(command, "unpacked/examples/onnxruntime/load.py", *TEXTS)
    assert [line.partition(":")[0] for line in ran.out.splitlines() if ":" in line] == ["money", "sport"], ran.err
    assert "edgepack" not in program


def _rendered(
    signature: Signature = PICTURES, reading: str = "label", settings: dict[str, Any] | None = None, **changes: Any
) -> dict[str, str]:
    made = examples.render(_manifest(**changes), signature, reading, settings or {})
    return {path: content.decode() for path, content in made.items()}


def test_there_is_an_example_for_each_place_in_each_language() -> None:
    files = {"load.py", "Load.kt", "Load.swift"}
    assert {*_rendered()} == {f"examples/{runtime}/{file}" for runtime in RUNTIMES for file in files}
    assert {*_rendered(runtimes={"tflite": runtime()})} == set()
    assert _rendered(Signature(inputs=(TensorSpec(name="x", shape=(2,), dtype="float16"),), labels=("a",))) == {}


@pytest.mark.parametrize(("needs", "missing"), [("CoreMLBackend", "Load.kt"), ("VulkanBackend", "Load.swift")])
def test_no_example_for_a_system_without_the_delegate(needs: str, missing: str) -> None:
    changed = {"executorch": {**RUNTIMES["executorch"], "needs": needs}}
    assert f"examples/executorch/{missing}" not in _rendered(runtimes=changed)
    assert len(_rendered(runtimes=changed)) == 2


@pytest.mark.parametrize(
    ("signature", "reading"),
    [(PICTURES, "label"), (WORDS, "label"), (PICTURES, "tags"), (NUMBERS, "values"), (BOXES, "shapes")],
    ids=["pictures", "texts", "tags", "values", "outputs"],
)
def test_the_examples_use_the_names_and_shapes_of_the_bundle(signature: Signature, reading: str) -> None:
    found = _rendered(signature, reading, {"threshold": 0.25})
    for path, text in found.items():
        if path.endswith(".py"):
            compile(text, path, "exec")
        for spec in signature.outputs if reading != "label" else ():
            assert f'"{spec.name}"' in text and f"float32 [{', '.join(map(str, (1, *spec.shape)))}]" in text
        assert ("io/labels.txt" in text) == bool(signature.labels)
        assert RUNTIMES[path.split("/")[1]]["entry"]["file"] in text
        for spec in signature.inputs:
            assert spec.name in text and ", ".join(map(str, (1, *spec.shape))) in text
        assert text.count("{") == text.count("}") and text.count("(") == text.count(")")
        assert not re.search(r"\{\{|\{%|\n\n\n\n", text)
    kotlin = found["examples/onnxruntime/Load.kt"]
    assert ("LongBuffer.wrap(input_ids)" if signature is WORDS else "FloatBuffer.wrap(input)") in kotlin
    assert "class Tiny(context: Context)" in kotlin


@pytest.mark.parametrize("name", ["data", "if", "case", "default", "init", "object", "null", "None", "it", "scores"])
def test_a_name_that_means_something_else_in_a_language_is_no_argument(name: str) -> None:
    found = _rendered(Signature(inputs=(TensorSpec(name=name, shape=(2,)),), labels=("a",)))
    for runtime_name in RUNTIMES:
        assert "logits(input0: FloatArray)" in found[f"examples/{runtime_name}/Load.kt"]
        assert "logits(input0: [Float])" in found[f"examples/{runtime_name}/Load.swift"]
        compile(found[f"examples/{runtime_name}/load.py"], "load.py", "exec")


def test_what_an_app_makes_of_outputs_is_written_out_in_each_language() -> None:
    tags = _rendered(PICTURES, "tags", {"threshold": 0.25})
    values, shapes = _rendered(NUMBERS, "values"), _rendered(BOXES, "shapes")
    for name in RUNTIMES:
        folder = f"examples/{name}"
        assert "fun tags(input: FloatArray): List<String>" in tags[f"{folder}/Load.kt"]
        assert "import kotlin.math.exp" in tags[f"{folder}/Load.kt"] and "> 0.25" in tags[f"{folder}/Load.kt"]
        assert "func tags(input: [Float]) throws -> [String]" in tags[f"{folder}/Load.swift"]
        assert "fun values(input: FloatArray): Map<String, Float>" in values[f"{folder}/Load.kt"]
        assert "func values(input: [Float]) throws -> [String: Float]" in values[f"{folder}/Load.swift"]
        assert "fun outputs(input: FloatArray): Map<String, FloatArray>" in shapes[f"{folder}/Load.kt"]
        assert "func outputs(input: [Float]) throws -> [String: [Float]]" in shapes[f"{folder}/Load.swift"]
        assert not [text for text in shapes.values() if "label" in text]
    assert '"boxes" to outputs[0].toTensor()' in shapes["examples/executorch/Load.kt"]
    assert '"scores": floats(outputs[1])' in shapes["examples/executorch/Load.swift"]


def test_every_dataset_here_has_names_that_can_be_arguments() -> None:
    for name in ("input", *tokenizer.INPUTS):
        found = _rendered(Signature(inputs=(TensorSpec(name=name, shape=(2,)),), labels=("a",)))
        assert f"logits({name}: FloatArray)" in found["examples/onnxruntime/Load.kt"]


def test_odd_names_of_inputs_are_quoted_and_numbered() -> None:
    odd = Signature(inputs=tuple(TensorSpec(name=name, shape=(2,)) for name in ('say "$x"', "class")), labels=("a",))
    found = _rendered(odd)
    assert '"say \\"\\$x\\"" to OnnxTensor' in found["examples/onnxruntime/Load.kt"]
    assert '"say \\"$x\\"": tensor(input0' in found["examples/onnxruntime/Load.swift"]
    assert "fun logits(input0: FloatArray, input1: FloatArray)" in found["examples/executorch/Load.kt"]
    for runtime_name in RUNTIMES:
        compile(found[f"examples/{runtime_name}/load.py"], "load.py", "exec")
