"""Decoders generate: their files read a prompt and then token by token, and write what torch writes."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import pytest
import torch
from bundle_factories import as_json, bundle
from decoders import PLACES, VOCABULARY, How, Kind, decoder, prompts, tokenizer
from decoders import tiny_decoders as tiny_decoders
from forked_workers import run_here
from torch_factories import reloaded, write

from edgepack.compress.stages import quantize
from edgepack.config import plugins
from edgepack.config.device import Quantization
from edgepack.core.errors import SelftestError, StageError
from edgepack.export.formats.onnx.generation import genai_files
from edgepack.export.generation import OpenStep, Step, cache_shapes, generator, greedy
from edgepack.measure.evaluate import answers
from edgepack.models.structure.decoder import is_decoder
from edgepack.models.structure.surgery import PassOn
from edgepack.workflows import selftest

KINDS: tuple[Kind, ...] = ("gpt2", "llama")
HOWS: tuple[How, ...] = ("eager", "quantized")
# Each kind and each precision in both formats: lowering takes seconds.
MADE: tuple[tuple[str, Kind, How], ...] = (
    ("executorch", "gpt2", "eager"),
    ("executorch", "llama", "quantized"),
    ("onnx", "llama", "eager"),
    ("onnx", "gpt2", "quantized"),
)
WINDOW = torch.randint(1, VOCABULARY, (1, PLACES), generator=torch.Generator().manual_seed(2))
COUNT = 20


@pytest.fixture(scope="module", autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def files() -> Any:
    """A function that returns an exported file, made once."""
    with TemporaryDirectory() as folder:

        def made(format: str, kind: Kind, how: How) -> Path:
            path = Path(folder, f"{kind}-{how}.{format}")
            if not path.exists():
                write(decoder(kind, how), format, path)
            return path

        yield made


def job(format: str, file: Path, mode: str, inputs: Any, **more: Any) -> dict[str, Any]:
    given = file.with_suffix(".npy")
    numpy.save(given, numpy.asarray(inputs))
    runtime = plugins.load("exporters", format).RUNTIME
    return {"mode": mode, "runtime": runtime, "file": str(file), "inputs": [str(given)], **more}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_generates_has_the_numbers_of_the_candidate(kind: Kind, how: How, tmp_path: Path) -> None:
    made = decoder(kind, how)
    expected = made.module(WINDOW)
    for candidate in (made, reloaded(made, tmp_path)):
        assert torch.equal(generator(candidate)(WINDOW), expected)


def test_what_generates_leaves_the_candidate_to_be_trained() -> None:
    candidate = decoder("gpt2").copy()
    candidate.module.train()
    made = generator(candidate)
    assert candidate.module.training and all(each.requires_grad for each in candidate.module.parameters())
    assert made.head.weight is made.embedding.weight
    assert made.head.weight.data_ptr() == candidate.module.head.weight.data_ptr()


def test_a_part_of_a_graph_is_no_decoder() -> None:
    graph = decoder("gpt2").program().module(check_guards=False)
    assert is_decoder(graph)
    [end] = graph.graph.find_nodes(op="output")
    end.replace_input_with(end.all_input_nodes[0], end.all_input_nodes[0].all_input_nodes[0])
    assert not is_decoder(graph)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [(PLACES,), (5, 1, 1, PLACES - 7)])
def test_a_text_read_in_parts_is_the_text_read_at_once(kind: Kind, parts: tuple[int, ...]) -> None:
    made = generator(decoder(kind))
    kept, given = Step(made), OpenStep(made)
    pasts = [torch.zeros(1, heads, 0, size) for heads, size in cache_shapes(made).values() for _ in range(2)]
    kept_logits, given_logits, at = [], [], 0
    for tokens in WINDOW.split(parts, dim=1):
        kept_logits.append(kept(tokens, torch.tensor([at])))
        logits, *pasts = given(tokens, pasts)
        given_logits.append(logits)
        at += tokens.shape[1]
    for logits in (kept_logits, given_logits):
        torch.testing.assert_close(torch.cat(logits, dim=1), made(WINDOW), rtol=1e-4, atol=1e-4)


def test_a_decoder_without_one_of_its_layers_generates() -> None:
    made = generator(decoder("llama").copy())
    made.layers[0] = PassOn()
    pasts = [torch.zeros(1, heads, 0, size) for heads, size in cache_shapes(made).values() for _ in range(2)]
    assert len(pasts) == 2
    torch.testing.assert_close(Step(made)(WINDOW, torch.tensor([0])), made(WINDOW))
    torch.testing.assert_close(OpenStep(made)(WINDOW, pasts)[0], made(WINDOW))


def test_a_new_text_is_read_without_the_one_before() -> None:
    step = Step(generator(decoder("llama")))
    first = step(WINDOW[:, :6], torch.tensor([0])).clone()
    step(WINDOW, torch.tensor([0]))
    assert torch.equal(step(WINDOW[:, :6], torch.tensor([0])), first)


def test_a_decoder_with_other_int8_than_layers_and_tables_is_refused() -> None:
    static = quantize.dry_run(decoder("gpt2"), quantize.Config(activations="static"), Quantization())
    assert is_decoder(static.module)
    with pytest.raises(StageError, match="only, not so in"):
        generator(static)


@pytest.mark.parametrize(("format", "kind", "how"), MADE)
def test_files_generate_what_torch_does(format: str, kind: Kind, how: How, files: Any) -> None:
    made = generator(decoder(kind, how))
    for prompt in prompts():
        asked = job(format, files(format, kind, how), "generate", [prompt], count=COUNT)
        assert run_here(asked)["tokens"] == [greedy(made, prompt, COUNT)]


@pytest.mark.parametrize(("format", "kind"), [(format, kind) for format, kind, how in MADE if how == "eager"])
def test_a_whole_window_is_evaluated_by_an_empty_state(format: str, kind: Kind, files: Any) -> None:
    output = files(format, kind, "eager").with_suffix(".npz")
    run_here(job(format, files(format, kind, "eager"), "predict", WINDOW, output=str(output)))
    (logits,) = answers(output)
    numpy.testing.assert_allclose(logits, decoder(kind).module(WINDOW).numpy(), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(("format", "kind", "how"), [MADE[1], MADE[2]])
def test_a_whole_window_and_its_last_token_are_timed(format: str, kind: Kind, how: How, files: Any) -> None:
    short = {"warm_up_seconds": 0, "seconds": 0, "least_runs": 3, "most_runs": 3, "most_seconds": 1}
    asked = job(format, files(format, kind, how), "time", [], **short)
    found = run_here(asked)
    assert len(found["samples_ns"]) == len(found["token_ns"]) == 3
    assert run_here({**asked, "mode": "memory"})["peak_bytes"] > 0
    assert run_here({**asked, "mode": "describe"})["inputs"][0]["shape"] == [1, PLACES]


def test_executorchs_runner_writes_the_same_text(files: Any, tmp_path: Path) -> None:
    runner = pytest.importorskip("executorch.extension.llm.runner")
    pieces, prompt = tokenizer(tmp_path / "tokenizer.json"), "the cat"
    parts: list[str] = []
    made = runner.TextLLMRunner(str(files("executorch", "llama", "quantized")), str(tmp_path / "tokenizer.json"))
    settings = runner.GenerationConfig(echo=False, max_new_tokens=COUNT, temperature=0.0)
    made.generate(prompt, settings, token_callback=parts.append)
    decoded = greedy(generator(decoder("llama", "quantized")), pieces.encode(prompt).ids, COUNT)
    assert "".join(parts) == pieces.decode(decoded)


def test_onnxruntime_genai_writes_the_same_tokens(files: Any, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    shutil.copy(files("onnx", "llama", "eager"), tmp_path / "model.onnx")
    for name, content in genai_files(tmp_path / "model.onnx", "model.onnx").items():
        (tmp_path / name).write_bytes(content)
    pieces, text = tokenizer(tmp_path / "tokenizer.json"), "the cat sat on"
    model, made = genai.Model(str(tmp_path)), generator(decoder("llama"))
    assert genai.Tokenizer(model).encode(text).tolist() == pieces.encode(text).ids
    for prompt in prompts():
        settings = genai.GeneratorParams(model)
        settings.set_search_options(max_length=len(prompt) + COUNT, do_sample=False)
        generating = genai.Generator(model, settings)
        generating.append_tokens(prompt)
        while not generating.is_done():
            generating.generate_next_token()
        written = [int(token) for token in generating.get_sequence(0)][len(prompt) :]
        assert written == greedy(made, prompt, COUNT)[: len(written)]


def test_a_selftest_compares_what_a_file_writes(files: Any) -> None:
    made, name = decoder("gpt2", "quantized"), "case-0-input_ids.bin"
    prompt, count = WINDOW[0, :6].tolist(), 5
    tokens = greedy(generator(made), prompt, count)
    logits = made.module(WINDOW).numpy().astype("<f4")

    def tested(written: list[int]) -> list[selftest.Answer]:
        case = {
            "inputs": [name],
            "expected": {"onnx": {"logits": "logits.bin"}},
            "generated": {"onnx": {"prompt": len(prompt), "tokens": written}},
        }
        found = {
            "models/news.onnx": files("onnx", "gpt2", "quantized").read_bytes(),
            "io/signature.json": as_json(
                inputs=[{"name": "input_ids", "shape": [1, PLACES], "dtype": "int64"}],
                outputs=[{"name": "logits", "shape": [1, PLACES, VOCABULARY], "dtype": "float32"}],
                preprocessing={},
            ),
            "selftest/cases.json": as_json(cases=[case], byte_order="little", tolerance={"outputs": 0.05}),
            f"selftest/{name}": WINDOW.numpy().astype("<i8").tobytes(),
            "selftest/logits.bin": logits.tobytes(),
        }
        return [*selftest.run(bundle(found, task="of another package"))]

    _, answer = tested(tokens)
    assert answer.same and answer.label == " ".join(map(str, tokens))
    with pytest.raises(SelftestError, match="for the beginning of case-0-input_ids, not"):
        tested([*tokens[:-1], tokens[-1] + 1])
