"""What a training has reached, on disk, so that a build that was killed goes on from there.

    checkpoint = context.checkpoints.next(lambda: {"doing": ..., "model": ...})
    if found := checkpoint.load(): ...
    checkpoint.save(tensors, facts)

A stage that is run again does the same as before up to its first training, so its trainings are known by their order
and by the model that they began with. A checkpoint is one safetensors file: tensors, and the rest as JSON.
"""

import json
import os
import random
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.core.events import Emit, Note
from edgepack.core.files import digest
from edgepack.core.frozen import Json

if TYPE_CHECKING:
    from torch import Tensor

_SHARE = 0.1  # of the time of a training that saving it may take
_PERIOD = 300.0  # seconds after which an epoch is saved before its end


@dataclass
class Checkpoints:
    """Those of one stage, in a folder of its own; without a folder nothing is kept.

    Of several processes that train together one `writes`.
    """

    folder: Path | None = None
    emit: Emit = lambda event: None
    begun: int = 0
    writes: bool = True

    def next(self, started: Callable[[], Json]) -> "Checkpoint":
        """Return that of the stage's next training; `started` says what the training begins with."""
        self.begun += 1
        if self.folder is None:
            return Checkpoint(None, "", self.emit)
        return Checkpoint(self.folder / f"{self.begun}.safetensors", digest(started()), self.emit, writes=self.writes)

    def own_folder(self) -> Path | None:
        """Return a folder for what a user's own trainer keeps of the stage's next training."""
        self.begun += 1
        return self.folder / f"own-{self.begun}" if self.folder else None


@dataclass
class Checkpoint:
    """The last state of one training."""

    file: Path | None
    started: str  # digest
    emit: Emit
    writes: bool = True
    took: float = 0.0  # seconds, to save it the last time
    spent: float = 0.0  # seconds, to save it until now
    begun: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)  # when

    def load(self) -> "tuple[dict[str, Tensor], Json] | None":
        """Return tensors and facts as they were saved, or None; what is damaged, or of another training, is removed."""
        if self.file is None or not self.file.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.file, "pt") as opened:
                facts = json.loads(opened.metadata()["facts"])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            if _sum(tensors) != facts.pop("sum"):
                raise ValueError("its content has changed")
        except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
            self.emit(Note(text=f"a checkpoint is damaged, and thrown away: {error}"))
        else:
            if facts.pop("started") == self.started:
                return tensors, facts
        if self.writes:
            self.file.unlink(missing_ok=True)
        return None

    def due(self) -> bool:
        """Return whether to save at the end of an epoch: unless that would take too much of the time."""
        share = _SHARE * (time.monotonic() - self.begun)  # of all the time: one that took long is made up for
        return self.file is not None and self.writes and (self.spent + self.took <= share or not self.spent)

    def overdue(self) -> bool:
        """Return whether to save within an epoch, since it takes long."""
        return self.due() and time.monotonic() - self.saved > _PERIOD

    def save(self, tensors: "dict[str, Tensor]", facts: Json) -> None:
        """Replace what was saved. A disk that is full ends no training: it is told, and nothing more is saved."""
        if self.file is None:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        started = time.monotonic()
        temporary = self.file.with_suffix(f".{os.getpid()}.tmp")
        whole = _apart(tensors)
        described = json.dumps({**facts, "started": self.started, "sum": _sum(whole)})
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            save_file(whole, temporary, metadata={"facts": described})
            temporary.replace(self.file)
        except (OSError, SafetensorError) as error:  # the second for a disk that is full
            self.emit(Note(text=f"no checkpoint is kept of this training: {error}"))
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self.file = None
        self.saved = time.monotonic()
        self.took = self.saved - started
        self.spent += self.took


def _apart(tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Return contiguous tensors of which no two share memory, as observers of one range do."""
    found: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        found[name] = plain.clone() if place in seen else plain
        seen.add(place)
    return found


def _sum(tensors: "dict[str, Tensor]") -> int:
    """Return a checksum of names and values: a file may have its length and yet lack its last pages after a crash."""
    import torch

    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(name.encode(), found)
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, found)
    return found


def random_state() -> "tuple[dict[str, Tensor], Json]":
    """Return the state of the generators of torch, numpy and Python."""
    import numpy
    import torch

    of_numpy: Any = numpy.random.get_state()
    kind, keys, *rest = of_numpy
    tensors = {"random/torch": torch.get_rng_state(), "random/numpy": torch.from_numpy(keys.astype("int64"))}
    if torch.cuda.is_initialized():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    return tensors, {"numpy": [kind, *rest], "python": random.getstate()}


def restore_random_state(tensors: "dict[str, Tensor]", facts: Json) -> None:
    import numpy
    import torch

    torch.set_rng_state(tensors["random/torch"])
    if "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"])
    kind, *rest = facts["numpy"]
    numpy.random.set_state((kind, tensors["random/numpy"].numpy().astype("uint32"), *rest))
    version, keys, gauss = facts["python"]
    random.setstate((version, tuple(keys), gauss))


def of_optimizer(optimizer: Any) -> "tuple[dict[str, Tensor], Json]":
    """Return its state: tensors by the place of their parameter, and all else.

    Some count their steps among the settings of a group, as timm's Lamb does: its numbers belong to the state.
    """
    import torch

    tensors: dict[str, Tensor] = {}
    others: Json = {}
    groups = {f"group/{place}": group for place, group in enumerate(optimizer.param_groups)}
    for place, values in {**optimizer.state_dict()["state"], **groups}.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{place}/{name}"] = value
            elif place not in groups or isinstance(value, int | float):
                others[f"{place}/{name}"] = value
    return tensors, others


def restore_optimizer(optimizer: Any, tensors: "dict[str, Tensor]", others: Json) -> None:
    """Restore it; tensors get the layout of their parameters, as the optimizer makes them, and all but counts of steps
    their device.
    """
    import torch

    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for name, value in {**tensors, **others}.items():
        *group, place, key = name.split("/")
        if group:
            optimizer.param_groups[int(place)][key] = value
            continue
        parameter = parameters[int(place)]
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
            value = torch.empty_like(parameter).copy_(value)
        elif isinstance(value, torch.Tensor) and key != "step":
            value = value.to(parameter.device)
        optimizer.state[parameter][key] = value


def part(kind: str, tensors: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """Return the tensors of one kind by their names in it.

    >>> part("module", {"module/fc.weight": 1, "random/torch": 2})
    {'fc.weight': 1}
    """
    return {name.removeprefix(f"{kind}/"): each for name, each in tensors.items() if name.startswith(f"{kind}/")}
