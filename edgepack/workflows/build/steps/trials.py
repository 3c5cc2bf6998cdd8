"""Models that a stage only tries: how long their exported files take on the device, and how large they are."""

from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgepack.config.plugins import Choice
from edgepack.core.errors import DeviceError, StageError
from edgepack.export import contract
from edgepack.measure.timing.figures import timings
from edgepack.workflows.build.workspace import Workspace

if TYPE_CHECKING:
    from edgepack.models.candidate import Candidate

_PROCESSES = 3  # that time one model
_KEPT = 2  # files


class Trials:
    """What stages are given to decide by measuring."""

    def __init__(self, work: Workspace, variant: str = "") -> None:
        """Of the files that would be made of a candidate of this variant: a quantizer, where the files want several."""
        self.work = work
        self.exporters = work.planner.exporters_of(variant)
        self.written: dict[int, tuple[Any, bytes]] = {}  # by the id of a module that is held as long, the newest last

    def latency(self, candidate: "Candidate") -> float:
        """The time of one inference on the device, of the first such format: the median of three processes, ms."""
        exporter = self.exporters[0]
        check_timed(self.work, exporter)
        content = self._first_file(candidate)
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"trial{contract.suffix(exporter)}"
            path.write_bytes(content)
            job = self.work.timing_job(exporter.module.RUNTIME, path)
            answers = [self.work.session.run(job) for _ in range(_PROCESSES)]
        return median(timings(answers)["latency.p50"])

    def size(self, candidate: "Candidate") -> float:
        """Bytes of the largest file that the recipe's formats make of it: the one that a size budget would fail."""
        others = (len(_written(exporter, candidate)) for exporter in self.exporters[1:])
        return max([len(self._first_file(candidate)), *others])

    def _first_file(self, candidate: "Candidate") -> bytes:
        """Its file of the first format. Those of two exported programs are kept, which nothing changes any more: they
        are timed in turns, and lowering one takes longer than timing it.
        """
        exporter = self.exporters[0]
        if candidate.form == "eager":
            return _written(exporter, candidate)
        kept = self.written.pop(id(candidate.module), None) or (candidate.module, _written(exporter, candidate))
        self.written = dict([*self.written.items(), (id(candidate.module), kept)][-_KEPT:])
        return kept[1]


def check_timed(work: Workspace, exporter: Choice) -> None:
    """Raises DeviceError or StageError where a stage cannot time what it tries."""
    if work.device.evidence.get("time") != "measured":
        why = work.session.absent or f"the timings of {work.device.name} are not measured"
        raise DeviceError(f"a stage needs timings to decide: {why}", "attach the device")
    if why := work.why_not_run(exporter.name):
        raise StageError(f"no latency can be measured: {why}", "put a format that runs here first in `export`")


def _written(exporter: Choice, candidate: "Candidate") -> bytes:
    """What the exporter makes of it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"trial{contract.suffix(exporter)}"
        contract.write(candidate, exporter, path)
        return path.read_bytes()
