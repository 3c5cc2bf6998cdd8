"""Your own task, a class of yours: `task: {python: "my_tasks:Counting", threshold: 3}`.

    class Counting(edgepack.Task):
        METRICS = {"count.error": edgepack.score("mean error of the count", edgepack.NUMBER, higher=False)}
        ...

The class defines what edgepack.data.contract.Task asks for, and METRICS: its metrics by name, or names of edgepack's.
Settings beside `python` are checked by its own `Config`, if it has one, and are then its `config`.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgepack.config.document import unknown
from edgepack.config.user_code.references import Arguments, Reference, libraries, resolve, sources
from edgepack.core.errors import RecipeError, reason
from edgepack.core.frozen import Frozen
from edgepack.core.metrics import METRICS, OF_FILES, Metric, problem
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data import contract

_OF_ONE_OUTPUT = ("label", "tags", "values")  # readings of a task with one output, of one number a label


class Config(Frozen):
    """Its own settings are fields beside this one, with the defaults of the class written out."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]

    python: Reference = Field(description='"module:Class", which extends edgepack.Task; the current folder comes first')

    @model_validator(mode="after")
    def _settled(self) -> "Config":
        try:
            kind = _kind(self.python)
            _named(kind)
            settings = _own(kind, self.__pydantic_extra__)
        except RecipeError as error:
            raise ValueError(str(error)) from None
        self.__pydantic_extra__.update({} if settings is None else settings.model_dump(mode="json"))
        return self


def metrics(config: Config) -> Mapping[str, Metric]:
    return _named(_kind(config.python))


def task(config: Config, signature: Signature) -> contract.Task:
    """Return the user's task. Raises RecipeError if it cannot be made, or does not say which outputs it has."""
    kind = _kind(config.python)
    try:
        made = kind(_own(kind, config.__pydantic_extra__), signature, _named(kind))
    except RecipeError:
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("%s failed", config.python)
        raise RecipeError(f"'{config.python}' failed: {reason(error)}") from error
    if wrong := _wrong_outputs(made):
        raise RecipeError(f"the outputs of '{config.python}' are wrong: {wrong}")
    return made


def incompatibility(config: Config, signature: Signature) -> str:
    try:
        task(config, signature)
    except RecipeError as error:
        return str(error)
    return ""


def files(config: Config) -> tuple[Path, ...]:
    """Return the files of its code, and of the user's modules that it imports."""
    return sources(config.python)


def installed(config: Config) -> dict[str, str]:
    return libraries(config.python)


def _kind(reference: str) -> type[contract.Task]:
    """Return the class. Raises RecipeError if it is none, or lacks what a task must define."""
    found: Any = resolve(reference)
    if not (isinstance(found, type) and issubclass(found, contract.Task)):
        raise RecipeError(f"'{reference}' is not a class that extends edgepack.Task")
    lacking = sorted(found.__abstractmethods__)
    if not getattr(found, "METRICS", None):
        lacking.append("METRICS")
    if lacking:
        raise RecipeError(f"'{reference}' must define {', '.join(lacking)}", "edgepack.Task says what each one is")
    return found


def _named(kind: Any) -> dict[str, Metric]:
    """Return the metrics of a class by name. Raises RecipeError for those that a task cannot have."""
    listed = kind.METRICS
    if isinstance(listed, str) or not isinstance(listed, Iterable):
        raise RecipeError(
            f"METRICS of {kind.__name__} is {listed!r:.60}", "give a mapping of names to edgepack.score(...), or a list"
        )
    given = listed if isinstance(listed, Mapping) else {name: name for name in listed}
    found = {str(name): _metric(kind.__name__, metric) for name, metric in given.items()}
    for name, metric in found.items():
        if why := problem(name, metric):
            raise RecipeError(f"METRICS of {kind.__name__}: {why}", "give it another name")
    return found


def _metric(owner: str, given: object) -> Metric:
    if isinstance(given, Metric):
        return given
    if isinstance(given, str) and given in METRICS and given not in OF_FILES:
        return METRICS[given]
    known = ", ".join(name for name in METRICS if name not in OF_FILES)
    message = f"METRICS of {owner}: {given!r} is neither edgepack.score(...) nor a metric of a task ({known})"
    raise RecipeError(message)


def _own(kind: Any, settings: Arguments) -> Any:
    """Return the class's own Config with these settings, or None if it has none. Raises RecipeError."""
    own = getattr(kind, "Config", None)
    if own is None:
        if settings:
            message = f"{kind.__name__} has no class Config, so it takes no settings: {', '.join(settings)}"
            raise RecipeError(message, "define Config in it, a subclass of pydantic.BaseModel")
        return None
    if not (isinstance(own, type) and issubclass(own, BaseModel)):
        raise RecipeError(f"Config of {kind.__name__} is not a subclass of pydantic.BaseModel")
    if own.model_config.get("extra") is None and (odd := [name for name in settings if name not in _settings(own)]):
        message = unknown(f"setting of {kind.__name__}", odd[0], _settings(own))
        raise RecipeError(message, "define it in Config, or correct the name")
    try:
        return own.model_validate_json(json.dumps(settings, allow_nan=False))
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"{at or kind.__name__}: {first['msg']}") from None
    except (TypeError, ValueError) as error:
        raise RecipeError(f"settings are numbers, texts, lists and mappings: {error}") from None


def _settings(own: type[BaseModel]) -> list[str]:
    """Return the names of its fields, and what else pydantic takes for them."""
    others = (field.validation_alias for field in own.model_fields.values())
    given = (each.choices if isinstance(each, AliasChoices) else [each] for each in others)
    return [*own.model_fields, *(name for names in given for name in names if isinstance(name, str))]


def _wrong_outputs(made: contract.Task) -> str:
    inputs, given = [spec.name for spec in made.signature.inputs], made.file_signature.outputs
    if wrong := _wrong_specs(made.signature.outputs, inputs) or _wrong_specs(given, inputs):
        return wrong
    names, shapes = [spec.name for spec in given], [spec.shape for spec in given]
    if made.reading == "label" and names != ["logits"]:
        return f"`reading` is 'label', so the output's name must be logits, not {', '.join(names)}"
    if made.reading in _OF_ONE_OUTPUT and shapes != [(len(made.signature.labels),)]:
        return f"`reading` is {made.reading!r}, so it must be one output with one number a label"
    return ""


def _wrong_specs(given: Sequence[object], inputs: Sequence[str]) -> str:
    specs = [spec for spec in given if isinstance(spec, TensorSpec)]
    if not specs or len(specs) < len(given):
        return "there are none" if not given else f"{[*given]!r:.60} are not each a TensorSpec"
    names = [spec.name for spec in specs]
    if odd := [name for name in names if not name.isidentifier()]:
        return f"{odd[0]!r} is no name of letters, digits and _"
    if len({*inputs, *names}) < len(inputs) + len(names):
        return f"two have the same name: {', '.join((*names, *inputs))}"
    if empty := [spec for spec in specs if not all(size > 0 for size in spec.shape)]:
        return f"{empty[0].name} has the shape {[*empty[0].shape]}"
    kinds = {spec.dtype for spec in specs} - {"float32"}
    return f"they are float32, not {kinds.pop()}" if kinds else ""
