"""edgepack: from a trained model, a recipe and a device to a bundle that is proven to meet its budgets.

>>> from edgepack import Store, build, load_device, load_recipe
>>> recipe = load_recipe("recipes/quickstart.yaml")
>>> build(recipe, load_device(recipe.device), Store(".edgepack/store"), dist="dist").exit_code
<ExitCode.OK: 0>
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "NUMBER",
    "SHARE",
    "Data",
    "Mean",
    "Store",
    "Task",
    "TensorSpec",
    "__version__",
    "build",
    "load_device",
    "load_recipe",
    "score",
]

if TYPE_CHECKING:
    from edgepack.config.device import load_device
    from edgepack.config.recipe_reading import load_recipe
    from edgepack.core.metrics import score
    from edgepack.core.signature import TensorSpec
    from edgepack.core.units import NUMBER, SHARE
    from edgepack.data.contract import Task
    from edgepack.data.splits import Data
    from edgepack.data.tasks._meters import Mean
    from edgepack.workflows.build.pipeline import build
    from edgepack.workflows.build.store import Store

_HOMES = {
    "NUMBER": "core.units",
    "SHARE": "core.units",
    "Data": "data.splits",
    "Mean": "data.tasks._meters",
    "Task": "data.contract",
    "TensorSpec": "core.signature",
    "score": "core.metrics",
    "Store": "workflows.build.store",
    "build": "workflows.build.pipeline",
    "load_device": "config.device",
    "load_recipe": "config.recipe_reading",
}


def __getattr__(name: str) -> Any:
    """Public names load on first use, so that `import edgepack` and `edgepack --help` stay instant."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgepack' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"edgepack.{_HOMES[name]}"), name)
