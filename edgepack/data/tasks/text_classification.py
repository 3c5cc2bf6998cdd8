"""Text classification, one label per text."""

from edgepack.core.signature import Signature
from edgepack.data.tasks._classification import METRIC, decide, distill, loss, score, smoothed, weighted

__all__ = ["METRIC", "decide", "distill", "incompatibility", "loss", "score", "smoothed", "weighted"]


def incompatibility(signature: Signature) -> str:
    return "" if signature.preprocessing.get("kind") == "text" else "this task is for text, but the data is not"
