"""Image classification, one label per picture."""

from edgepack.core.signature import Signature
from edgepack.data.tasks._classification import Config, metrics, task, too_few

__all__ = ["Config", "incompatibility", "metrics", "task"]


def incompatibility(config: Config, signature: Signature) -> str:
    text = signature.preprocessing.get("kind") == "text"
    return "this task is for pictures, but the data is text: use text_classification" if text else too_few(signature)
