"""Language modelling: which token comes next, after each of a text."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgepack.core.frozen import Frozen
from edgepack.core.metrics import Metric, named
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data import contract

if TYPE_CHECKING:
    from torch import Tensor

    from edgepack.data.contract import Array, Arrays

GENERATES = True
_ROWS = 256  # positions whose logits are distilled at a time: some tokens have 50,000


class Config(Frozen):
    """It has no settings."""


def metrics(config: Config) -> Mapping[str, Metric]:
    return named("perplexity", "bits_per_byte")


def task(config: Config, signature: Signature) -> "LanguageModelling":
    return LanguageModelling(config, signature, metrics(config))


def incompatibility(config: Config, signature: Signature) -> str:
    kind = signature.preprocessing.get("kind")
    return "" if kind == "tokens" else "this task is for windows of tokens: use data: {corpus: {texts: ...}}"


class LanguageModelling(contract.Task):
    """Outputs are logits [n, length, vocabulary] of the token after each one, and targets int64 [n, length, 2]: the
    tokens themselves, and the bytes of text that each stands for.

    The first token of a window is given, and the rest is predicted. Of a file's outputs the loss of each token and the
    most likely next ones are kept: logits of a whole split may take gigabytes.
    """

    def outputs(self) -> tuple[TensorSpec, ...]:
        length, vocabulary = self.signature.inputs[0].shape[0], int(self.signature.preprocessing["vocabulary"])
        return (TensorSpec(name="logits", shape=(length, vocabulary)),)

    def problem(self, targets: "Tensor") -> str:
        import torch

        length, vocabulary = self.outputs()[0].shape
        if targets.dtype != torch.int64 or [*targets.shape[1:]] != [length, 2]:
            kind = str(targets.dtype).removeprefix("torch.")
            return f"targets are {kind} of shape {list(targets.shape)}, expected int64 of shape [n, {length}, 2]"
        low, high = int(targets[..., 0].min()), int(targets[..., 0].max())
        return f"tokens go from {low} to {high}, but the vocabulary is 0 to {vocabulary - 1}" * (
            low < 0 or high >= vocabulary
        )

    def loss(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> "Tensor":
        return self.smoothed(outputs, targets, 0.0)

    def smoothed(self, outputs: "tuple[Tensor, ...]", targets: "Tensor", amount: float) -> "Tensor":
        from torch.nn import functional

        logits, tokens = outputs[0][:, :-1].flatten(0, 1), targets[:, 1:, 0].flatten()
        return functional.cross_entropy(logits, tokens, label_smoothing=amount)

    def distill(self, outputs: "tuple[Tensor, ...]", teacher: "tuple[Tensor, ...]", temperature: float) -> "Tensor":
        """Return the KL divergence at a temperature, times its square, as a mean over tokens.

        Source: V. Sanh et al., DistilBERT, arXiv 1910.01108, there for masked tokens.
        """
        from torch.nn import functional

        ours, theirs = (each[0].flatten(0, 1) / temperature for each in (outputs, teacher))
        apart = ours.new_zeros(())
        for some, goal in zip(ours.split(_ROWS), theirs.split(_ROWS), strict=True):
            soft = some.log_softmax(1)
            apart = apart + functional.kl_div(soft, goal.log_softmax(1), reduction="sum", log_target=True)
        return apart / len(ours) * temperature**2

    def condensed_outputs(self) -> tuple[TensorSpec, ...]:
        length = self.signature.inputs[0].shape[0]
        return TensorSpec(name="losses", shape=(length - 1,)), TensorSpec(name="next_ids", shape=(length,))

    def condensed(self, outputs: "Arrays", inputs: "Arrays") -> "Arrays":
        """Return the loss of each token but the first, and the most likely token after each; NaN for NaN."""
        import numpy

        losses, best = [], []
        for logits, tokens in zip(outputs[0], inputs[0], strict=True):
            largest = logits.max(axis=1)
            with numpy.errstate(invalid="ignore", over="ignore"):
                sums = numpy.log(numpy.exp(logits - largest[:, None]).sum(axis=1)) + largest
            losses.append(sums[:-1] - logits[numpy.arange(len(logits) - 1), tokens[1:]])
            best.append(numpy.where(numpy.isfinite(largest), logits.argmax(axis=1), numpy.nan))
        return numpy.stack(losses).astype("float32"), numpy.stack(best).astype("float32")

    # Two nearly equal tokens may change places by rounding, and their numbers are far apart.
    steady = False

    def meter(self) -> "_Perplexity":
        return _Perplexity()

    def agreement(self, outputs: "Arrays", reference: "Arrays") -> "Array":
        """Return the share of tokens after which the same token is the most likely."""
        same: Array = (outputs[1] == reference[1]).mean(axis=1)
        return same

    def told(self, outputs: "Arrays") -> list[str]:
        return [f"{each.mean():.3g} of loss a token" for each in outputs[0]]


class _Perplexity:
    """Sums of the loss of tokens, and of the bytes of text that they stand for."""

    def __init__(self) -> None:
        self.lost, self.tokens, self.bytes = 0.0, 0, 0

    def update(self, outputs: "tuple[Tensor, ...]", targets: "Tensor") -> None:
        self.lost += float(outputs[0].double().sum())
        self.tokens += outputs[0].numel()
        self.bytes += int(targets[:, 1:, 1].sum())

    def compute(self) -> dict[str, float]:
        from math import exp, inf, log

        loss = self.lost / self.tokens
        perplexity = exp(loss) if loss < _LARGE else inf
        return {"perplexity": perplexity, "bits_per_byte": self.lost / log(2) / max(1, self.bytes)}


_LARGE = 700.0  # e to the power of more is too large for a float
