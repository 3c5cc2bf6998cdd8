"""The one place that imports transformers: after torchvision, which it may import too, and without its notices."""

from functools import cache
from typing import Any

from edgepack.models._vision import torchvision


@cache
def transformers() -> Any:
    torchvision()
    import transformers as module

    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module
