"""Know the metrics of all tasks, those of a user's own as soon as a recipe names it."""

from collections.abc import Mapping
from functools import cache

from edgepack.config import plugins
from edgepack.config.plugins import Choice
from edgepack.core.metrics import METRICS, OF_EVERY_FILE, Metric, define


@cache
def known() -> Mapping[str, tuple[str, ...]]:
    """Return the tasks that have each metric; those of a task that needs settings are not known without."""
    found: dict[str, tuple[str, ...]] = {}
    for name in plugins.names("tasks"):
        module = plugins.load("tasks", name)
        if any(field.is_required() for field in module.Config.model_fields.values()):
            continue
        found.update({metric: (*found.get(metric, ()), name) for metric in module.metrics(module.Config())})
    return found


def of(task: Choice) -> Mapping[str, Metric]:
    """Return the metrics of a task, and define them."""
    metrics: Mapping[str, Metric] = task.module.metrics(task.config)
    define(metrics)
    return metrics


def allowed(task: Choice | None) -> frozenset[str]:
    """Return the metrics that a recipe may limit: those of every file and of its task; all, if that is unknown."""
    if task is None:
        return frozenset(METRICS)
    return OF_EVERY_FILE | {*of(task)}
