"""Image classification, one label per picture."""

from edgepack.core.signature import Signature
from edgepack.data.tasks._classification import Config, metrics, task, too_few

__all__ = ["Config", "incompatibility", "metrics", "task"]


def incompatibility(config: Config, signature: Signature) -> str:
    match signature.preprocessing.get("kind"):
        case "text":
            return "this task is for pictures, but the data is text: use text_classification"
        case "sound":
            return "this task is for pictures, but the data is sound: use audio_classification"
    return too_few(signature)
