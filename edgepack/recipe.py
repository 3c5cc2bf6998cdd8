"""What to build: a recipe, read from YAML and checked whole before anything runs.

recipe = load_recipe(Path("recipes/quickstart.yaml"), overrides=["budgets.size=400kB"])
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgepack import plugins
from edgepack.config import Document, Frozen, KeyPath, Nested, read_scalar, unknown
from edgepack.device import all_devices
from edgepack.errors import RecipeError
from edgepack.plugins import Choice
from edgepack.units import DURATION, SHARE, SIZE, Quantity


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Something measured on every exported file, and the ways a budget may bound it (the first is the default)."""

    quantity: Quantity
    bounds: tuple[str, ...]
    meaning: str


METRICS: dict[str, Metric] = {
    "size": Metric(quantity=SIZE, bounds=("max",), meaning="bytes of the exported file"),
    "latency.p50": Metric(quantity=DURATION, bounds=("max",), meaning="median time of one inference"),
    "latency.p90": Metric(quantity=DURATION, bounds=("max",), meaning="90th percentile of one inference"),
    "latency.load": Metric(quantity=DURATION, bounds=("max",), meaning="time to load the file, page cache warm"),
    "latency.first": Metric(quantity=DURATION, bounds=("max",), meaning="time of the first inference after loading"),
    "memory.peak": Metric(quantity=SIZE, bounds=("max",), meaning="peak memory above the runtime's own, load included"),
    "accuracy": Metric(quantity=SHARE, bounds=("min", "max_drop"), meaning="share of test samples classified right"),
    "parity": Metric(
        quantity=SHARE, bounds=("min",), meaning="share of test samples on which file and torch model agree"
    ),
    "parity.runtimes": Metric(
        quantity=SHARE, bounds=("min",), meaning="share of test samples on which it agrees with the first file"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One limit on one metric of every exported file. `limit` is in the metric's base unit (bytes, ms, share)."""

    metric: str
    bound: str  # max | min | max_drop
    limit: float
    place: str  # file:line, for whoever has to change it

    @property
    def name(self) -> str:
        return self.metric if self.bound == METRICS[self.metric].bounds[0] else f"{self.metric}.{self.bound}"


class RecipeFile(Frozen):
    """The top level of a recipe. Parts that plugins check themselves are plain data here."""

    edgepack: Literal[1]
    name: str | None = None
    task: str
    model: dict[str, Any]
    data: str | dict[str, Any]
    device: str
    seed: int = 0
    stages: tuple[str | dict[str, Any], ...] = ()
    export: tuple[str | dict[str, Any], ...]
    budgets: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe: every plugin found, every value in its unit, every default filled in."""

    name: str
    file: Path
    task: str
    model: Choice
    data: Choice
    device: str
    seed: int
    stages: tuple[Choice, ...]
    exporters: tuple[Choice, ...]
    budgets: tuple[Budget, ...]

    def resolved(self) -> dict[str, Any]:
        """The recipe with nothing left to defaults; building it again gives the same bundle."""
        return {
            "edgepack": 1,
            "name": self.name,
            "task": self.task,
            "model": self.model.plain(),
            "data": {self.data.name: self.data.plain()},
            "device": self.device,
            "seed": self.seed,
            "stages": [{stage.name: stage.plain()} for stage in self.stages],
            "export": [{exporter.name: exporter.plain()} for exporter in self.exporters],
            "budgets": _resolved_budgets(self.budgets),
        }


def load_recipe(path: str | Path, *, overrides: Sequence[str] = (), device: str | None = None) -> Recipe:
    """The recipe at `path` (a file, or the name of one in `recipes/`) with `--set` overrides applied.

    Raises ConfigError with every mistake in it, each at its line.
    """
    file = find_recipe(path)
    document = Document.read(file)
    for override in overrides:
        _override(document, override)
    if device not in (None, document.data.get("device")):  # its bundle must not take the place of the recipe's own
        document.data.update(device=device, name=f"{document.data.get('name') or file.stem}-{device}")
        document.lines[("device",)] = 0
    raw = document.check(RecipeFile, document.data)
    recipe = _Checker(document, file).recipe(document.data)
    document.raise_problems()
    if raw is None or recipe is None:  # every None has noted its problem, so this cannot be reached
        raise RecipeError(f"{file} could not be read")
    return recipe


def find_recipe(path: str | Path) -> Path:
    """`path` itself, or `recipes/<path>.yaml`."""
    file = Path(path)
    if file.exists() or file.suffix in (".yaml", ".yml"):
        return file
    known = {found.stem: found for found in all_recipes()}
    if str(path) in known:
        return known[str(path)]
    raise RecipeError(unknown("recipe", path, known), "name a YAML file, or one in the folder recipes/")


def all_recipes(folder: Path = Path("recipes")) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.yaml")))


@dataclass(frozen=True)
class _Checker:
    """Checks each part of a recipe on its own, so that one mistake hides no other."""

    document: Document
    file: Path

    def recipe(self, data: dict[str, Any]) -> Recipe | None:
        task = self._task(data.get("task"))
        model = self._choice("models", data.get("model"), ("model",))
        source = self._choice("datasets", data.get("data"), ("data",))
        stages = self._choices("stages", data.get("stages"), "stages")
        exporters = self._choices("exporters", data.get("export"), "export")
        budgets = tuple(self._budgets(data.get("budgets")))
        self._order(stages)
        self._trained(model, stages)
        self._exports(data.get("export"), exporters)
        self._device(data.get("device"))
        if model is None or source is None or task is None or self.document.problems:
            return None
        self._fit(source, model, stages)
        return Recipe(
            name=data.get("name") or self.file.stem,
            file=self.file,
            task=task,
            model=model,
            data=source,
            device=data["device"],
            seed=data.get("seed", 0),
            stages=tuple(stage for stage in stages if stage),
            exporters=tuple(exporter for exporter in exporters if exporter),
            budgets=budgets,
        )

    def _task(self, value: object) -> str | None:
        if not isinstance(value, str):
            return None  # RecipeFile says so already
        if value not in plugins.names("tasks"):
            self.document.problem(("task",), unknown("task", value, plugins.names("tasks")))
            return None
        return value

    def _choice(self, kind: str, value: object, path: KeyPath) -> Choice | None:
        if value is None or not isinstance(value, dict | str) or (kind == "models" and isinstance(value, str)):
            return None
        try:
            return plugins.choose(kind, value)
        except Nested as error:
            self.document.note(error.error, error.model, error.value, path + error.path)
        except ValueError as error:
            self.document.problem(path, str(error))
        return None

    def _choices(self, kind: str, values: object, key: str) -> tuple[Choice | None, ...]:
        if not isinstance(values, tuple):
            return ()
        return tuple(self._choice(kind, value, (key, i)) for i, value in enumerate(values))

    def _order(self, stages: Sequence[Choice | None]) -> None:
        form, giver = "eager", "the model"
        for i, stage in enumerate(stages):
            if stage is None:
                return
            takes = stage.module.TAKES
            if form != takes:
                message = f"{stage.name} takes an {takes} model, but {giver} before it gives an {form} one: move it up"
                self.document.problem(("stages", i), message)
                return
            form, giver = stage.module.GIVES, stage.name

    def _trained(self, model: Choice | None, stages: Sequence[Choice | None]) -> None:
        if model is None or None in stages or model.module.trained(model.config):
            return
        first = stages[0] if stages else None
        if first is None or not getattr(first.module, "MAKES_TEACHER", False):
            path: KeyPath = ("stages", 0) if stages else ("model",)
            message = (
                "the model starts with random weights: begin with the stage 'train', or give the model a checkpoint"
            )
            self.document.problem(path, message)

    def _device(self, value: object) -> None:
        known = all_devices()
        if isinstance(value, str) and value not in known and not value.endswith((".yaml", ".yml")):
            self.document.problem(("device",), unknown("device", value, known))

    def _exports(self, value: object, exporters: Sequence[Choice | None]) -> None:
        if value == ():
            self.document.problem(
                ("export",), f"nothing to export: name one of {', '.join(plugins.names('exporters'))}"
            )
        seen: set[str] = set()
        for i, exporter in enumerate(exporters):
            if exporter and exporter.name in seen:
                self.document.problem(("export", i), f"'{exporter.name}' is named twice")
            seen.add(exporter.name if exporter else "")

    def _fit(self, data: Choice, model: Choice, stages: Sequence[Choice | None]) -> None:
        """Whether the data is there and the models can take it, as far as that is known without torch."""
        try:
            signature = data.module.describe(data.config)
        except RecipeError as error:
            self.document.problem(("data",), str(error))
            return
        for path, choice in _models(model, stages):
            if message := choice.module.misfit(choice.config, signature):
                self.document.problem(path, message)

    def _budgets(self, value: object) -> Iterator[Budget]:
        if not isinstance(value, dict):
            return
        for path, metric, bound, limit in _flatten(value):
            if metric not in METRICS:
                message = unknown("budget", metric, METRICS).replace("unknown budget", "nothing measures a budget")
                self.document.problem(path, message)
                continue
            known = METRICS[metric]
            bound = bound or known.bounds[0]
            try:
                yield Budget(metric=metric, bound=bound, limit=known.quantity.parse(limit), place=self._place(path))
            except ValueError as error:
                self.document.problem(path, str(error))

    def _place(self, path: KeyPath) -> str:
        line = self.document.line(path)
        return f"{self.document.file}:{line}" if line else "--set"


def _models(model: Choice, stages: Sequence[Choice | None]) -> Iterator[tuple[KeyPath, Choice]]:
    yield ("model",), model
    for i, stage in enumerate(stages):
        for key, value in (dict(stage.config) if stage else {}).items():
            if stage and isinstance(value, Choice) and value.kind == "models":
                yield ("stages", i, stage.name, key), value


def _flatten(budgets: dict[str, Any], prefix: str = "") -> Iterator[tuple[KeyPath, str, str, Any]]:
    """(path, metric, bound, limit) of `latency.p50: 2 ms`, `latency: {p50: 2 ms}` and `accuracy: {min: 95 %}` alike."""
    for key, value in budgets.items():
        name = f"{prefix}.{key}" if prefix else key
        path: KeyPath = ("budgets", *([prefix] if prefix else []), key)
        bounds = METRICS[prefix].bounds if prefix in METRICS else ()
        if key in bounds:
            yield path, prefix, key, value
        elif isinstance(value, dict) and not prefix:
            yield from _flatten(value, name)
        else:
            yield path, name, "", value


def _resolved_budgets(budgets: Sequence[Budget]) -> dict[str, dict[str, str]]:
    result: dict[str, dict[str, str]] = {}
    for budget in budgets:
        limit = METRICS[budget.metric].quantity.exact(budget.limit)
        result.setdefault(budget.metric, {})[budget.bound] = limit
    return result


def _override(document: Document, text: str) -> None:
    """Apply `key.path=value`; a list item is named by its number or, for stages, by the stage."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {text!r}: write it as key.path=value, for example --set budgets.size=1MB")
    try:
        document.data, path = _set(document.data, key.split("."), read_scalar(value))
    except LookupError as error:
        raise RecipeError(f"--set {key}: {error.args[0]}") from None
    document.lines[path] = 0


def _set(node: Any, parts: list[str], value: Any) -> tuple[Any, KeyPath]:
    """`node` with the value at `parts` replaced or added, and the path where it now stands."""
    if not parts:
        return value, ()
    if isinstance(node, tuple):
        i, rest = _list_item(node, parts)
        inner, path = _set(node[i], rest, value)
        return (*node[:i], inner, *node[i + 1 :]), (i, *path)
    mapping = node if isinstance(node, dict) else {node: {}} if node == parts[0] else {}
    name, rest = _next_key(mapping, parts)
    inner, path = _set(mapping.get(name), rest, value)
    return {**mapping, name: inner}, (name, *path)


def _next_key(mapping: dict[str, Any], parts: list[str]) -> tuple[str, list[str]]:
    for end in range(len(parts), 0, -1):  # `latency.p50` may stand in the file as one key
        if (name := ".".join(parts[:end])) in mapping:
            return name, parts[end:]
    return parts[0], parts[1:]


def _list_item(items: tuple[Any, ...], parts: list[str]) -> tuple[int, list[str]]:
    if parts[0].isdigit() and int(parts[0]) < len(items):
        return int(parts[0]), parts[1:]
    names = [next(iter(item)) if isinstance(item, dict) and item else str(item) for item in items]
    if parts[0] not in names:
        raise LookupError(f"the list has no '{parts[0]}', only {', '.join(names)}")
    return names.index(parts[0]), parts
