"""Find by bisection how much to remove to meet a target."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from edgepack.compress.contract import Latency
from edgepack.compress.targets import Target
from edgepack.config.device import Quantization
from edgepack.core.errors import StageError
from edgepack.core.units import SHARE
from edgepack.models.candidate import Candidate
from edgepack.models.complexity import macs, parameters, stored_bytes
from edgepack.models.structure.channels import describe_reasons
from edgepack.models.structure.dependency_groups import parts, survey
from edgepack.models.structure.surgery import widest
from edgepack.models.structure.unprunable import no_groups, reasons, way_out

if TYPE_CHECKING:
    from edgepack.compress.stages.prune.config import Config


@dataclass(frozen=True, kw_only=True)
class Search:
    """Searches for the ratio that meets the target of `config`; there may be no target."""

    config: "Config"
    quantization: Quantization
    latency: Latency | None

    def amount(self, candidate: Candidate) -> float:
        """Return the candidate's value of the target's metric."""
        return _amount(self.config.target, candidate, self.latency) if self.config.target else 0.0

    def ratio(self, candidate: Candidate, whole: float) -> float:
        """Return the smallest ratio that meets the target; 0 without one. A target's share is a share of `whole`."""
        limit = self.limit(candidate, whole) if self.config.target else None
        return 0.0 if limit is None else 1 - widest(lambda keep: self._left(candidate, keep), limit)

    def limit(self, candidate: Candidate, whole: float) -> float | None:
        """Return the most that may be left; None if it is met now. Raises StageError with what is reachable."""
        assert self.config.target is not None, "the configuration has a ratio or a target"
        limit = self.config.target.limit(whole)
        now = self._left(candidate, 1.0) if self.config.of_encoders else whole
        if now <= limit:
            return None
        closest = self._left(candidate, 0.0)
        if closest > limit:
            raise self._out_of_reach(self.config.target, candidate, closest, whole)
        return limit

    def _left(self, candidate: Candidate, keep: float) -> float:
        with torch.random.fork_rng(devices=[]):  # a rebuild from the ratio must draw the same numbers
            shares, multiple = kept(candidate.module, 1 - keep, self.config), self.quantization.channel_multiple
            return self.amount(candidate.narrowed(shares, multiple=multiple, exclude=self.config.exclude))

    def _out_of_reach(self, target: Target, candidate: Candidate, closest: float, whole: float) -> StageError:
        share = SHARE.exact(math.ceil(1000 * closest / whole) / 1000)  # rounded up: it must be reachable itself
        spared = " that is not excluded" if self.config.exclude else ""
        found = survey(candidate.module.eval(), candidate.example_inputs(2), self.config.exclude)
        if not found.groups:
            return StageError(
                f"pruning cannot reach {target.words()}: {no_groups(candidate.module, found)}", way_out(found)
            )
        also = reasons(found.whole)
        able = f"{spared} that can lose any" if also else spared
        limits = f"; {describe_reasons(also)}" if also else ""
        return StageError(
            f"pruning cannot reach {target.words()}: with {self._least(candidate.module)} in every layer{able} "
            f"the closest is {target.tell(closest)}, {share} of the current model{limits}",
            f"set the target to that or more{', exclude fewer layers' * bool(spared)}, or start from a smaller student",
        )

    def _least(self, module: nn.Module) -> str:
        multiple, found = self.quantization.channel_multiple, parts(module)
        head, neurons = self.config.heads is None, self.config.ffn is None
        if not found:
            return f"one block of {multiple} channels"
        return " and ".join(["one head"] * head + [f"one block of {multiple} neurons"] * neurons)


def kept(module: nn.Module, ratio: float, config: "Config", progress: float = 1.0) -> float | dict[str, float]:
    """Return the share of each layer to keep at this point of the way: one for all, or an encoder's two."""
    found = parts(module)
    shares = {name: (1 - config.share(part.setting, ratio)) ** progress for name, part in found.items()}
    return shares if found else (1 - ratio) ** progress


def _amount(target: Target, candidate: Candidate, latency: Latency | None) -> float:
    match target.metric:
        case "params":
            return parameters(candidate.module)
        case "macs":
            return macs(candidate)
        case "size":
            return stored_bytes(candidate.module)
        case "latency":
            if latency is None:
                raise StageError("no device here can measure latency", "give a ratio, or a target of macs")
            return latency(candidate)
