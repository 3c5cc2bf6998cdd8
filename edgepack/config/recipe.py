"""Define the recipe: what to build, read from YAML and checked completely before anything runs.

recipe = load_recipe(Path("recipes/quickstart.yaml"), overrides=["budgets.size=400kB"])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgepack.config.budgets import Budget, Waiver, plain
from edgepack.config.compute import Compute, Hardware, hardware
from edgepack.config.device import Device, Quantization
from edgepack.config.plugins import Choice
from edgepack.core.frozen import Frozen


class Cut(Frozen):
    """How many samples of a split a build uses, instead of all."""

    samples: int = Field(ge=1, description="number of samples, in the same share of every class")


class Cuts(Frozen):
    """Which splits are cut; written next to the data set: `data: {digits: {size: 16}, test: {samples: 200}}`."""

    train: Cut | None = None
    validation: Cut | None = None
    test: Cut | None = None

    @property
    def samples(self) -> dict[str, int]:
        """Return the number of samples of each split that is cut."""
        return {part: cut.samples for part, cut in self if cut is not None}


class RecipeFile(Frozen):
    """The top level of a recipe. Parts that plugins check are plain data here."""

    edgepack: Literal[1]
    name: str | None = None
    version: str | None = Field(default=None, description="version of the model, written to the bundle")
    licence: str | None = Field(default=None, description="licence of the model, an SPDX expression: Apache-2.0")
    licence_file: str | None = Field(default=None, description="file with the licence text, copied to the bundle")
    task: Any
    model: Any
    data: Any
    device: str
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    stages: tuple[Any, ...] = ()
    export: tuple[Any, ...]
    budgets: dict[str, Any] = {}
    waivers: tuple[Any, ...] = ()
    compute: Compute = Compute()
    trackers: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe: plugins resolved, values in base units, defaults filled in."""

    name: str
    file: Path
    task: Choice
    model: Choice
    data: Choice
    device: str
    seed: int
    stages: tuple[Choice, ...]
    exporters: tuple[Choice, ...]
    budgets: tuple[Budget, ...]
    waivers: tuple[Waiver, ...] = ()
    cuts: Cuts = field(default_factory=Cuts)  # of the data's splits
    compute: Compute = field(default_factory=Compute)
    trackers: tuple[Choice, ...] = ()
    overrides: tuple[str, ...] = ()  # changes made by --set
    version: str | None = None
    licence: str | None = None
    licence_file: str | None = None

    def computed(self) -> dict[str, Any]:
        """Return what `plain` says of the hardware."""
        return {}

    def plain(self, decided: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """Return the recipe with every default written out, so that building it again gives the same bundle. `decided`
        holds, for each stage, the settings that it chose by measuring. What does not change the bundle is left out.
        """
        chosen = [*decided, *({} for _ in self.stages[len(decided) :])]
        facts = {"version": self.version, "licence": self.licence, "licence_file": self.licence_file}
        return {
            "edgepack": 1,
            "name": self.name,
            **{key: value for key, value in facts.items() if value is not None},
            "task": self.task.written(),
            "model": self.model.plain(),
            "data": {self.data.name: self.data.plain(), **self.cuts.model_dump(mode="json", exclude_none=True)},
            "device": self.device,
            "seed": self.seed,
            **self.computed(),
            "stages": [
                {stage.name: {**stage.plain(), **choice}} for stage, choice in zip(self.stages, chosen, strict=True)
            ],
            "export": [{exporter.name: exporter.plain()} for exporter in self.exporters],
            "budgets": plain(self.budgets),
            "waivers": [waiver.model_dump(mode="json") for waiver in self.waivers],
        }


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe(Recipe):
    """A recipe resolved for one device: open settings come from its profile, or else its processor; and for the
    hardware of this computer, on which its models are trained.
    """

    profile: Device
    hardware: Hardware = field(default_factory=Hardware)

    def computed(self) -> dict[str, Any]:
        return {"compute": self.hardware.plain()}


def resolve(
    recipe: Recipe, device: Device, facts: Mapping[str, Any] | None = None, on: Hardware | None = None
) -> ResolvedRecipe:
    """Return the recipe resolved for a device with the `facts` that its runner reports, and for this computer
    unless other hardware is given.

    Raises DeviceError or RecipeError where this computer cannot compute as the recipe asks.
    """
    profile = device.settled(facts or {})
    given = {each.name: getattr(recipe, each.name) for each in fields(Recipe)}
    suited = tuple(
        replace(each, config=each.module.suited(each.config, profile.quantization)) for each in recipe.exporters
    )
    return ResolvedRecipe(**{**given, "exporters": suited}, profile=profile, hardware=on or hardware(recipe.compute))


@dataclass(frozen=True, kw_only=True)
class Place:
    """The context of a stage: the device, whether the model is a transformer encoder, and the other stages.

    `evidence` says how the device's timings are obtained: "measured", "emulated" or "estimated". `whole_bytes` names
    the export formats that cannot hold numbers of fewer than 8 bits.
    """

    quantization: Quantization
    evidence: str = "measured"
    encoder: bool = False
    earlier: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    whole_bytes: tuple[str, ...] = ()
