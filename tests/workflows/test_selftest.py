"""What a bundle holds to test itself with: its samples, from raw text to label, through the very files that ship."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from bundle_factories import TOLERANCE, Files, as_json, bundle, classifier, text_files
from factories import device, edgepack, python, runtime, tokenizer

from edgepack.core.errors import ExitCode, SelftestError, VerifyError
from edgepack.data.texts.tokenizer import load
from edgepack.deliver.bundle import unpack
from edgepack.workflows import selftest


def test_texts_are_answered_by_the_file_that_ships() -> None:
    ran = edgepack("selftest", str(bundle()))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        'models/news.onnx  "The bank and the market fell" -> money',
        'models/news.onnx  "The team won" -> sport',
        "OK: 2 outputs match those recorded at build time",
    ]


def test_what_a_bundle_says_commands_neither_terminal_nor_ci() -> None:
    """Anybody may have made the bundle: labels, names, and why a file has no answers."""
    odd = "\x1b[2J\n::stop-commands::x\r"
    cases = json.loads(text_files()["selftest/cases.json"])
    named = [{**case, "inputs": [odd, *case["inputs"][1:]], "text": None} for case in cases["cases"]]
    known = {"onnxruntime": runtime("models/news.onnx"), "tflite": runtime("models/news.onnx", "other")}
    for changed, runtimes in (
        ({"io/labels.txt": b"\x1b[2J\r::stop-commands::x\nsport\n"}, {"onnxruntime": runtime("models/news.onnx")}),
        ({"selftest/cases.json": as_json(**{**cases, "cases": named})}, {"onnxruntime": runtime("models/news.onnx")}),
        ({"selftest/cases.json": as_json(**cases, not_run={"other": odd})}, known),
    ):
        ran = edgepack("selftest", str(bundle(text_files(**changed), runtimes=runtimes)))
        assert not {"\x1b", "\r"} & {*ran.out, *ran.err}
        assert not [line for line in (ran.out + ran.err).splitlines() if line.lstrip().startswith("::")]


def test_another_decision_is_a_failure_that_is_no_budget() -> None:
    path = bundle(text_files(**{"models/news.onnx": classifier(first=1)}))
    ran = edgepack("selftest", str(path))
    assert ran.code == ExitCode.STAGE
    assert "news.zip: outputs differ from those recorded at build time" in ran.err
    assert 'models/news.onnx gives sport for "The bank and the market fell", not money' in ran.err
    assert "match those recorded at build time" not in ran.out


def test_the_same_decision_by_other_logits_is_noticed() -> None:
    files = text_files()
    cases = json.loads(files["selftest/cases.json"])
    cases["cases"][1]["expected"]["onnx"] = [0.0, 1.7]
    with pytest.raises(
        SelftestError, match=r'other logits for "The team won": .* differ by 17\.6 % .* allowed are 5 %'
    ):
        list(selftest.run(bundle(text_files(**{"selftest/cases.json": as_json(**cases)}))))


def test_where_only_agreement_is_asked_for_other_numbers_pass_but_none_that_is_not_finite() -> None:
    cases = json.loads(text_files()["selftest/cases.json"])
    cases["cases"][1]["expected"]["onnx"] = [0.0, 1.7]
    cases["tolerance"] = {"agreement": 0.99}
    found = [*selftest.run(bundle(text_files(**{"selftest/cases.json": as_json(**cases)})))]
    assert [(each.distance, each.allowed) for each in found] == [(0.0, 0.0)] * 2
    cases["cases"][1]["expected"]["onnx"] = [1.7, 0.0]
    with pytest.raises(SelftestError, match=r'gives sport for "The team won", not money'):
        list(selftest.run(bundle(text_files(**{"selftest/cases.json": as_json(**cases)}))))
    assert selftest._flaw(numpy.array([1.0, numpy.nan]), numpy.zeros(2)) == numpy.inf


def test_what_an_app_ships_has_nothing_to_test() -> None:
    unpack(bundle(), Path("app"), deploy_only=True)
    ran = edgepack("selftest", "app")
    assert (ran.code, ran.out) == (ExitCode.USAGE, "")
    assert "app holds only what an app ships, no samples" in ran.err


def test_a_tokenizer_that_makes_other_inputs_is_noticed() -> None:
    other = load(tokenizer("other", special=("[UNK]", "[PAD]", "[CLS]", "[SEP]")), 8)
    with pytest.raises(SelftestError, match=r'tokenizer\.json gives other input_ids for "The bank and'):
        list(selftest.run(bundle(text_files(**{"io/tokenizer.json": other.json()}))))
    longer = load(tokenizer(), 9)
    with pytest.raises(SelftestError, match=r"gives other attention_mask for"):
        list(selftest.run(bundle(text_files(**{"io/tokenizer.json": longer.json()}))))


def test_a_runtime_that_is_not_installed_is_said_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def runtimes(name: str) -> dict[str, Any]:
        return dict.fromkeys((name, "onnxruntime"), runtime("models/news.onnx"))

    monkeypatch.setattr(selftest, "find_spec", lambda name: None if name == "executorch" else object())
    for name, why in (
        ("executorch", "executorch is not installed here"),
        ("tflite", "does not support the runtime 'tflite'"),
    ):
        ran = edgepack("selftest", str(bundle(runtimes=runtimes(name))))
        assert ran.code == ExitCode.DEVICE
        assert f"models/news.onnx was not run: {why}" in ran.err or f"was not run: this edgepack {why}" in ran.err
        assert '"The team won" -> sport' in ran.out


def test_a_file_that_was_not_run_when_it_was_built_is_said_and_the_others_run() -> None:
    files = text_files(**{"models/news.pte": b"a file for another processor"})
    cases = json.loads(files["selftest/cases.json"])
    files["selftest/cases.json"] = as_json(**cases, not_run={"executorch": "executorch here has no VulkanBackend"})
    known = {"onnxruntime": ("models/news.onnx", "onnx"), "executorch": ("models/news.pte", "executorch")}
    runtimes = {name: runtime(*facts) for name, facts in known.items()}
    ran = edgepack("selftest", str(bundle(files, runtimes=runtimes)))
    assert ran.code == ExitCode.DEVICE
    assert len(ran.out.splitlines()) == 2
    assert "its expected outputs are unknown: at build time, executorch here has no VulkanBackend" in ran.err


def test_pictures_are_answered_from_their_tensors() -> None:
    files = text_files()
    cases = json.loads(files["selftest/cases.json"])
    for case in cases["cases"]:
        del case["text"]
    files["selftest/cases.json"] = json.dumps(cases).encode()
    del files["io/tokenizer.json"]
    answers = list(selftest.run(bundle(files)))
    assert [(answer.sample, answer.label) for answer in answers] == [
        ("case-0-input_ids", "money"),
        ("case-1-input_ids", "sport"),
    ]


def test_neither_torch_nor_a_recipe_is_needed() -> None:
    bundle()
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['edgepack', 'selftest', 'news.zip']; "
    ran = python(code + "from edgepack.cli.main import main; main()")
    assert (ran.code, ran.err) == (0, "")


def test_the_samples_run_on_the_device_that_is_named() -> None:
    device(controls={"threads": 1}, match={"runner": ["host"]})
    ran = edgepack("selftest", str(bundle()), "--device", "board")
    assert (ran.code, len(ran.out.splitlines())) == (0, 3), ran.err
    device(match={"cpu": ["no such processor"]})
    ran = edgepack("selftest", str(bundle()), "--device", "board")
    assert ran.code == ExitCode.DEVICE and "this is not the board" in ran.err
    assert edgepack("selftest", str(bundle()), "--device", "none").code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"versions": {"executorch": "1"}}, "onnxruntime is not installed on the device"),
        ({"versions": {"onnxruntime": "1"}, "lacks": {"onnxruntime": "it crashes there"}}, "it crashes there"),
    ],
)
def test_a_runtime_that_the_device_has_not_is_said(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], why: str
) -> None:
    connection = SimpleNamespace(facts=facts, run=lambda job: pytest.fail("it was run"))
    monkeypatch.setattr(selftest, "connected", lambda device: contextlib.nullcontext(connection))
    device()
    ran = edgepack("selftest", str(bundle()), "--device", "board")
    assert ran.code == ExitCode.DEVICE and f"models/news.onnx was not run: {why}" in ran.err


def test_a_damaged_bundle_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.measure.processes.Host.run", lambda *given: pytest.fail("it was run"))
    path = bundle()
    path.write_bytes(path.read_bytes()[:-1])
    assert edgepack("selftest", str(path)).code == ExitCode.BUDGET
    assert edgepack("selftest", "no.zip").code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"selftest/cases.json": b"{}"}, "cases.json not found, or not valid for a self-test"),
        (
            {"selftest/cases.json": as_json(cases=[], byte_order="little", tolerance=TOLERANCE)},
            "has no self-test samples",
        ),
        ({"io/signature.json": b"[]"}, "signature.json not found, or not valid"),
        ({"selftest/case-1-input_ids.bin": b"1234"}, "the input 'input_ids' of case 1 does not match"),
        ({"io/tokenizer.json": b"{}"}, "tokenizer.json not found, or not a tokenizer"),
        ({"selftest/case-0.txt": b"\xff"}, "case-0.txt not found, or not text"),
        ({"io/labels.txt": b"money\n"}, "1 labels for 2 outputs: io/labels.txt"),
    ],
)
def test_a_bundle_that_cannot_test_itself_says_why(changed: Files, why: str) -> None:
    with pytest.raises(VerifyError, match=why):
        list(selftest.run(bundle(text_files(**changed))))


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (runtime("models/news.onnx", "tflite"), "has no expected outputs for onnxruntime"),
        (runtime("no"), "nothing for 'onnxruntime' to load: 'no'"),
        (runtime("selftest/cases.json"), "nothing for 'onnxruntime' to load"),
        ({"format": "onnx"}, r"does not describe a bundle: runtimes\.onnxruntime\.version"),
    ],
)
def test_a_manifest_must_tell_which_file_answers_what(facts: dict[str, Any], why: str) -> None:
    with pytest.raises(VerifyError, match=why):
        list(selftest.run(bundle(runtimes={"onnxruntime": facts})))
