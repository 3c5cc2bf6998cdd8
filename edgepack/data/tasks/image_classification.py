"""Image classification, one label per picture."""

from edgepack.core.signature import Signature
from edgepack.data.tasks._classification import METRIC, decide, distill, loss, score, smoothed, weighted

__all__ = ["METRIC", "decide", "distill", "incompatibility", "loss", "score", "smoothed", "weighted"]


def incompatibility(signature: Signature) -> str:
    text = signature.preprocessing.get("kind") == "text"
    return "this task is for pictures, but the data is text: use text_classification" if text else ""
