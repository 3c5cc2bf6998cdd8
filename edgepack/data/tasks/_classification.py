"""Share code of tasks with one label per sample: logits [n, classes], targets [n]."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

METRIC = "accuracy"


def loss(logits: "Tensor", targets: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.cross_entropy(logits, targets)


def smoothed(logits: "Tensor", targets: "Tensor", amount: float) -> "Tensor":
    """Source: C. Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, arXiv 1512.00567, section 7."""
    from torch.nn import functional

    return functional.cross_entropy(logits, targets, label_smoothing=amount)


def weighted(logits: "Tensor", targets: "Tensor", weights: "Tensor", amount: float) -> "Tensor":
    """Return the mean over samples, not over weights: else a class that is in few batches would count less."""
    from torch.nn import functional

    total = functional.cross_entropy(logits, targets, weight=weights, label_smoothing=amount, reduction="sum")
    return total / len(targets)


def distill(logits: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor":
    """Return the KL divergence at a temperature, times its square, so that gradients keep their size.

    Source: G. Hinton, O. Vinyals and J. Dean, Distilling the Knowledge in a Neural Network, arXiv 1503.02531, 2015.
    """
    from torch.nn import functional

    soft = functional.log_softmax(logits / temperature, dim=1)
    goal = functional.log_softmax(teacher / temperature, dim=1)
    return functional.kl_div(soft, goal, reduction="batchmean", log_target=True) * temperature**2


def score(logits: Any, targets: Any) -> float:
    return float((decide(logits) == targets).mean())


def decide(logits: Any) -> Any:
    return logits.argmax(axis=1)
