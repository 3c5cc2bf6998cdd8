"""Text classification, one label per text."""

from edgepack.core.signature import Signature
from edgepack.data.tasks._classification import Config, metrics, task, too_few

__all__ = ["Config", "incompatibility", "metrics", "task"]


def incompatibility(config: Config, signature: Signature) -> str:
    text = signature.preprocessing.get("kind") == "text"
    return too_few(signature) if text else "this task is for text, but the data is not"
