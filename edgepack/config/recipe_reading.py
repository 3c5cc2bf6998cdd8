"""Find, override and check recipes, and report every mistake with its place."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.config import plugins
from edgepack.config.budget_reading import read_budgets, read_waivers
from edgepack.config.budgets import Budget
from edgepack.config.device import Device, all_devices, load_device
from edgepack.config.document import ConfigError, Document, KeyPath, Nested, unknown
from edgepack.config.document.overrides import override
from edgepack.config.plugins import Choice
from edgepack.config.recipe import Cuts, Place, Recipe, RecipeFile
from edgepack.core.errors import RecipeError

if TYPE_CHECKING:
    from edgepack.core.signature import Signature


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[A-Za-z0-9._+-]+")


def load_recipe(
    path: str | Path, *, overrides: Sequence[str] = (), device: str | None = None, trackers: Sequence[str] = ()
) -> Recipe:
    """Return the recipe at `path` (a file, or a name in `recipes/`) with `--set` overrides applied.

    `trackers` are names of experiment trackers to use besides the recipe's own. Raises ConfigError with every mistake,
    each with its line.
    """
    file = find_recipe(path)
    document = Document.read(file)
    for text in overrides:
        override(document, text)
    if device not in (None, document.data.get("device")):  # its bundle must not replace the recipe's own
        document.data.update(device=device, name=f"{document.data.get('name') or file.stem}-{Path(device).stem}")
        document.came_from("--device", ("device",))
    _track(document, trackers)
    raw = document.check(RecipeFile, document.data)
    recipe = _Checker(document, file).recipe(document.data)
    document.raise_problems()
    if raw is None or recipe is None:  # cannot happen: every None has noted its problem
        raise RecipeError(f"{file} could not be read")
    return replace(recipe, overrides=tuple(overrides), compute=raw.compute)


def _track(document: Document, names: Sequence[str]) -> None:
    """Add these trackers to the document, but for those that it names itself."""
    known = document.data.get("trackers", ())
    if not isinstance(known, tuple):
        return  # RecipeFile reports this
    named = {str(name) for each in known for name in (each if isinstance(each, dict) else (each,))}
    added = [name for name in dict.fromkeys(names) if name not in named]
    if added:
        document.data["trackers"] = (*known, *added)
    for i, _ in enumerate(added, start=len(known)):
        document.came_from("--track", ("trackers", i))


def find_recipe(path: str | Path) -> Path:
    """Return `recipes/<path>.yaml`, or `path` itself. A recipe takes precedence over a folder of the same name."""
    file = Path(path)
    if file.suffix in (".yaml", ".yml"):
        return file
    known = {found.stem: found for found in all_recipes()}
    if str(path) in known:
        return known[str(path)]
    if file.exists():
        return file
    raise RecipeError(unknown("recipe", path, known), "name a YAML file, or one in the folder recipes/")


def all_recipes(folder: Path = Path("recipes")) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.yaml")))


@dataclass(frozen=True)
class _Checker:
    """Checks each part of a recipe separately, so that one mistake does not hide others."""

    document: Document
    file: Path

    def recipe(self, data: dict[str, Any]) -> Recipe | None:
        task = self._choice("tasks", data["task"], ("task",)) if "task" in data else None
        model = self._choice("models", data["model"], ("model",)) if "model" in data else None
        if task is not None and model is not None:
            task = replace(task, config=task.module.suited(task.config, model.module.embedding_width(model.config)))
        named, cuts = self._uncut(data.get("data"))
        source = self._choice("datasets", named, ("data",)) if "data" in data else None
        stages = self._choices("stages", data.get("stages"), "stages")
        exporters = self._choices("exporters", data.get("export"), "export")
        trackers = self._choices("trackers", data.get("trackers"), "trackers")
        formats = tuple(exporter.name for exporter in exporters if exporter)
        budgets = read_budgets(self.document, data.get("budgets"), formats, task)
        waivers = read_waivers(self.document, data.get("waivers"), budgets, formats)
        self._measurable(budgets, exporters)
        self._order(data.get("stages"))
        signature = self._signature(source) if source is not None else None
        if task is not None and signature is not None:
            signature = self._of_task(task, signature)
        if isinstance(data.get("stages", ()), tuple):
            self._trained(model, stages, signature)
        self._exports(data.get("export"), exporters)
        self._usable("trackers", trackers)
        self._device(data.get("device"), model, stages, exporters)
        name = self._name(data.get("name") or self.file.stem)
        self._version(data.get("version"))
        licence = self._licence(data.get("licence"))
        self._licence_file(data.get("licence_file"))
        if cuts is not None and signature is not None and task is not None:
            self._cut(cuts, task, signature)
        if model is not None and signature is not None:
            self._fit(signature, model, stages)
        if model is None or source is None or task is None or cuts is None or self.document.problems:
            return None
        return Recipe(
            name=name,
            file=self.file,
            task=task,
            model=model,
            data=source,
            cuts=cuts,
            device=data["device"],
            seed=data.get("seed", 0),
            stages=tuple(stage for stage in stages if stage),
            exporters=tuple(exporter for exporter in exporters if exporter),
            trackers=tuple(tracker for tracker in trackers if tracker),
            budgets=budgets,
            waivers=waivers,
            version=data.get("version"),
            licence=licence,
            licence_file=data.get("licence_file"),
        )

    def _name(self, name: object) -> str:
        if isinstance(name, str) and not _NAME.fullmatch(name):
            rule = "letters, digits, '.', '_' and '-' only, a letter or digit first"
            self.document.problem(("name",), f"a name is used in file names: {rule}; got {name!r}")
        return str(name)

    def _version(self, value: object) -> None:
        if isinstance(value, str) and not _VERSION.fullmatch(value):
            self.document.problem(
                ("version",), f"a version has letters, digits, '.', '_', '+' and '-' only; got {value!r}"
            )

    def _licence(self, value: object) -> str | None:
        """Return the SPDX expression in its canonical form, or None after noting a mistake."""
        if not isinstance(value, str):
            return None
        from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

        try:
            return str(canonicalize_license_expression(value))
        except InvalidLicenseExpression:
            rule = "write an SPDX expression, such as Apache-2.0, 'MIT OR Apache-2.0' or LicenseRef-Proprietary"
            self.document.problem(("licence",), f"{value!r} is not an SPDX licence: {rule}")
        return None

    def _licence_file(self, value: object) -> None:
        if isinstance(value, str) and not Path(value).is_file():
            self.document.problem(("licence_file",), f"there is no file {value!r}")

    def _choice(self, kind: str, value: object, path: KeyPath) -> Choice | None:
        try:
            return plugins.choose(kind, value)
        except Nested as error:
            self.document.note(error.error, error.model, error.value, path + error.path)
        except ValueError as error:
            self.document.problem(path, str(error))
        return None

    def _uncut(self, value: object) -> tuple[object, Cuts | None]:
        """Return what names the data set, and how its splits are cut: both stand side by side."""
        if not isinstance(value, dict):
            return value, Cuts()
        cuts = {part: cut for part, cut in value.items() if part in Cuts.model_fields}
        named = {key: inside for key, inside in value.items() if key not in cuts}
        return named, self.document.check(Cuts, cuts, ("data",))

    def _cut(self, cuts: Cuts, task: Choice, signature: "Signature") -> None:
        if task.module.incompatibility(task.config, signature):  # noted by _of_task
            return
        if not task.module.task(task.config, signature).has_classes:
            return
        classes = len(signature.labels)
        for part, samples in cuts.samples.items():
            if samples < classes:
                message = f"{samples} samples are too few: the data has {classes} classes, and one of each is needed"
                self.document.problem(("data", part, "samples"), message)

    def _choices(self, kind: str, values: object, key: str) -> tuple[Choice | None, ...]:
        if not isinstance(values, tuple):
            return ()
        return tuple(self._choice(kind, value, (key, i)) for i, value in enumerate(values))

    def _measurable(self, budgets: Sequence[Budget], exporters: Sequence[Choice | None]) -> None:
        if len(exporters) == 1 and any(budget.metric == "parity.runtimes" for budget in budgets):
            message = "not measured: it compares two runtimes, and the recipe exports for one"
            self.document.problem(("budgets", "parity.runtimes"), message)

    def _order(self, values: object) -> None:
        """Note a mistake if a stage cannot take the model form of the stage before it; stops at unknown stages."""
        form, giver = "eager", "the model"
        for i, value in enumerate(values if isinstance(values, tuple) else ()):
            try:
                name = plugins.name_of("stages", value)
            except ValueError:
                return
            stage = plugins.load("stages", name)
            if form != stage.TAKES:
                message = (
                    f"{name} needs an {stage.TAKES} model, but {giver} before it gives an {form} one: move {name} up"
                )
                self.document.problem(("stages", i), message)
                return
            form, giver = stage.GIVES, name

    def _trained(self, model: Choice | None, stages: Sequence[Choice | None], signature: "Signature | None") -> None:
        if model is None or None in stages or signature is None or model.module.trained(model.config, signature):
            return
        first = stages[0] if stages else None
        if first is None or not first.module.MAKES_TEACHER:
            path: KeyPath = ("stages", 0) if stages else ("model",)
            own = model.module.embedding_width(model.config) if signature.is_embedding else None
            advice = "add the stage 'train' first, or give the model a checkpoint"
            if own not in (None, signature.width):
                advice = f"its embeddings have {own} numbers, not {signature.width}: leave out size, or {advice}"
            self.document.problem(path, f"the model is not trained for this data: {advice}")

    def _device(
        self, value: object, model: Choice | None, stages: Sequence[Choice | None], exporters: Sequence[Choice | None]
    ) -> None:
        known = all_devices()
        if not isinstance(value, str):
            return
        if value not in known and Path(value).suffix not in (".yaml", ".yml"):
            self.document.problem(("device",), unknown("device", value, known))
            return
        try:
            device = load_device(value)
        except ConfigError as error:
            self.document.problems += error.problems
            return
        for i, place in enumerate(_places(device, model, stages, exporters)):
            stage = stages[i]
            if stage and (message := stage.module.incompatibility(stage.config, place)):
                self.document.problem(("stages", i, stage.name), message)

    def _exports(self, value: object, exporters: Sequence[Choice | None]) -> None:
        if value == ():
            self.document.problem(
                ("export",), f"nothing to export: name one of {', '.join(plugins.names('exporters'))}"
            )
        self._usable("export", exporters)

    def _usable(self, key: str, choices: Sequence[Choice | None]) -> None:
        """Note plugins that are named twice, or cannot be used on this computer."""
        seen: set[str] = set()
        for i, choice in enumerate(choices):
            if choice and choice.name in seen:
                self.document.problem((key, i), f"'{choice.name}' is named twice")
            seen.add(choice.name if choice else "")
            if choice and (message := choice.module.unavailable(choice.config)):
                self.document.problem((key, i, choice.name), f"not available here: {message}")

    def _signature(self, data: Choice) -> "Signature | None":
        """Return the signature of the data, or None after noting why it is not available."""
        try:
            found: Signature = data.module.describe(data.config)
        except RecipeError as error:
            self.document.problem(("data",), str(error))
            return None
        return found

    def _of_task(self, task: Choice, signature: "Signature") -> "Signature":
        """Return the signature with the task's outputs, after noting why it does not fit, if so."""
        if message := task.module.incompatibility(task.config, signature):
            self.document.problem(("task",), message)
            return signature
        found: Signature = task.module.task(task.config, signature).signature
        return found

    def _fit(self, signature: "Signature", model: Choice, stages: Sequence[Choice | None]) -> None:
        """Note each model that cannot take the data, as far as this is known without torch."""
        for path, choice in _models(model, stages):
            if message := choice.module.incompatibility(choice.config, signature):
                self.document.problem(path, message)


def _places(
    device: Device, model: Choice | None, stages: Sequence[Choice | None], exporters: Sequence[Choice | None]
) -> Iterator[Place]:
    """Yield the place of each stage: once a stage switches to another model, that one counts for later stages."""
    names, evidence = tuple(stage.name if stage else "" for stage in stages), device.evidence.get("time", "not taken")
    whole_bytes = tuple(map(_written, (each for each in exporters if each and not each.module.low_bits(each.config))))
    for i, stage in enumerate(stages):
        encoder = bool(model and model.module.is_encoder(model.config))
        yield Place(
            quantization=device.quantization,
            evidence=evidence,
            encoder=encoder,
            earlier=names[:i],
            later=names[i + 1 :],
            whole_bytes=whole_bytes,
        )
        model = next((choice for _, choice in _own_models(stage)), model)


def _written(exporter: Choice) -> str:
    """Name an exporter with the plugins that it uses: "executorch (coreml)"."""
    used = ", ".join(exporter.module.uses(exporter.config).values())
    return f"{exporter.name} ({used})" if used else exporter.name


def _models(model: Choice, stages: Sequence[Choice | None]) -> Iterator[tuple[KeyPath, Choice]]:
    yield ("model",), model
    for i, stage in enumerate(stages):
        for key, choice in _own_models(stage):
            if stage:
                yield ("stages", i, stage.name, key), choice


def _own_models(stage: Choice | None) -> Iterator[tuple[str, Choice]]:
    """Yield the models named in a stage's settings."""
    for key, value in stage.config if stage else ():
        if isinstance(value, Choice) and value.kind == "models":
            yield key, value
