"""Language modelling: perplexity is that of the tokens, bits are those of the text, and lower is better."""

import math

import numpy
import pytest
import torch
from factories import measurement, recipe
from torch.nn import functional

from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.tasks import language_modelling
from edgepack.data.tasks.language_modelling import Config, LanguageModelling
from edgepack.deliver import wording
from edgepack.judge.gate import judge
from edgepack.models.outputs import scorable

LENGTH, VOCABULARY = 6, 11
SIGNATURE = Signature(
    inputs=(TensorSpec(name="input_ids", shape=(LENGTH,), dtype="int64"),),
    preprocessing={"kind": "tokens", "vocabulary": VOCABULARY},
)
TASK: LanguageModelling = language_modelling.task(Config(), SIGNATURE)


def samples(count: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (count, LENGTH))
    return torch.randn(count, LENGTH, VOCABULARY) * 3, tokens, torch.stack([tokens, tokens % 4 + 1], dim=2)


def scores(logits: torch.Tensor, tokens: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    meter = TASK.meter()
    for rows in torch.arange(len(logits)).split(2):
        meter.update(scorable(TASK, (logits[rows],), (tokens[rows],)), targets[rows])
    return TASK.scores(meter)


def test_perplexity_and_bits_are_those_of_the_loss() -> None:
    logits, tokens, targets = samples()
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert float(TASK.loss((logits,), targets)) == pytest.approx(float(loss))
    found = scores(logits, tokens, targets)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    bits = float(loss) * tokens[:, 1:].numel() / math.log(2) / int(targets[:, 1:, 1].sum())
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert TASK.metric == "perplexity" and TASK.better(3) > TASK.better(4)


def test_equal_logits_hesitate_among_all_tokens() -> None:
    _, tokens, targets = samples()
    assert scores(torch.zeros(5, LENGTH, VOCABULARY), tokens, targets)["perplexity"] == pytest.approx(VOCABULARY)


def test_what_is_kept_needs_no_torch_and_is_small() -> None:
    logits, tokens, _ = samples()
    losses, best = TASK.condensed((logits.numpy(),), (tokens.numpy(),))
    assert [each.shape for each in (losses, best)] == [(5, *spec.shape) for spec in TASK.condensed_outputs()]
    assert numpy.array_equal(best, logits.argmax(2).numpy())
    hurt = logits.numpy().copy()
    hurt[1, 2, 3] = numpy.nan
    losses, best = TASK.condensed((hurt,), (tokens.numpy(),))
    assert numpy.isnan(best[1, 2]) and numpy.isnan(losses[1, 2]) and numpy.isfinite(losses[0]).all()


def test_files_agree_on_the_tokens_that_are_most_likely_in_both() -> None:
    logits, tokens, _ = samples()
    turned = logits.clone()
    turned[0, :3] = -turned[0, :3]
    ours, theirs = (TASK.condensed((each.numpy(),), (tokens.numpy(),)) for each in (turned, logits))
    assert TASK.agreement(ours, theirs).tolist() == [0.5, 1, 1, 1, 1]
    assert TASK.told(ours)[0].endswith("of loss a token")


def test_a_student_learns_from_all_tokens_alike() -> None:
    logits, _, _ = samples()
    other = logits + torch.randn_like(logits)
    soft, goal = ((each / 2).log_softmax(2).flatten(0, 1) for each in (logits, other))
    whole = functional.kl_div(soft, goal, log_target=True, reduction="batchmean")
    assert float(TASK.distill((logits,), (other,), 2.0)) == pytest.approx(4 * float(whole), rel=1e-5)


def test_targets_of_another_vocabulary_are_told() -> None:
    _, _, targets = samples()
    assert TASK.problem(targets) == ""
    assert TASK.problem(targets + 100) == "tokens go from 100 to 110, but the vocabulary is 0 to 10"
    assert "expected int64 of shape [n, 6, 2]" in TASK.problem(targets[..., 0])


def test_a_rise_is_a_share_of_the_teachers_perplexity() -> None:
    made = recipe(
        task="language_modelling",
        data={"corpus": {"texts": "bbc-news"}},
        model={"gpt2": {"width": 64, "layers": 2, "heads": 4}},
        stages=[{"train": {"epochs": 1}}],
        budgets={"perplexity": {"max": 30, "max_rise": "5 %"}},
    )
    rises = [each for each in made.budgets if each.bound == "max_rise"]
    values = [measurement("perplexity", 21.2), measurement("perplexity", 20.0, artifact="teacher (onnx)")]
    (found,) = judge(rises, ["onnx"], values)
    assert (found.budget, found.outcome) == ("perplexity.max_rise", "fail")
    assert found.value == pytest.approx(0.06)
    assert wording.sentence(found) == "6 %, at most 5 %: over by 1 point"
