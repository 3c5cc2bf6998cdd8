"""Text classification, one label per text."""

from edgepack.core.signature import Signature
from edgepack.data.tasks._classification import Config, metrics, task

__all__ = ["Config", "incompatibility", "metrics", "task"]


def incompatibility(config: Config, signature: Signature) -> str:
    return "" if signature.preprocessing.get("kind") == "text" else "this task is for text, but the data is not"
