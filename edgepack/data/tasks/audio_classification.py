"""Classification of sounds, one label per sound: keywords, languages, machines."""

from edgepack.core.signature import Signature
from edgepack.data.tasks._classification import Config, metrics, task, too_few

__all__ = ["Config", "incompatibility", "metrics", "task"]


def incompatibility(config: Config, signature: Signature) -> str:
    """A user's own function may give sound, or features of it, without saying so."""
    if signature.preprocessing.get("kind") == "text":
        return "this task is for sounds, but the data is text: use text_classification"
    if any(len(spec.shape) > 2 for spec in signature.inputs):
        return "this task is for sounds, but the data has pictures: use image_classification"
    return too_few(signature)
