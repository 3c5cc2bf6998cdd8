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

_PROCESSES = 3  # processes that time one model
_KEPT = 2  # files


class Trials:
    """Measures candidates for stages that decide by measuring."""

    def __init__(self, work: Workspace, variant: str = "") -> None:
        """Measure files of this variant: a quantizer, if the files need several, or ""."""
        self.work = work
        self.exporters = work.planner.exporters_of(variant)
        self.written: dict[int, tuple[Any, bytes]] = {}  # by id() of a module that is kept alive here; newest last

    def latency(self, candidate: "Candidate") -> float:
        """Return the latency on the device in the first format: the median of three processes, in ms."""
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
        """Return the bytes of the largest file among the recipe's formats: the one that would miss a size budget."""
        others = (len(self._written(exporter, candidate)) for exporter in self.exporters[1:])
        return max([len(self._first_file(candidate)), *others])

    def _first_file(self, candidate: "Candidate") -> bytes:
        """Return the file in the first format. Files of the last two exported programs are cached: these do not change,
        they are timed in alternating runs, and lowering takes longer than timing.
        """
        exporter = self.exporters[0]
        if candidate.form == "eager":
            return self._written(exporter, candidate)
        kept = self.written.pop(id(candidate.module), None) or (candidate.module, self._written(exporter, candidate))
        self.written = dict([*self.written.items(), (id(candidate.module), kept)][-_KEPT:])
        return kept[1]

    def _written(self, exporter: Choice, candidate: "Candidate") -> bytes:
        """Return the exported file as bytes."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"trial{contract.suffix(exporter)}"
            contract.write(self.work.shipped(candidate), exporter, path)
            return path.read_bytes()


def check_timed(work: Workspace, exporter: Choice) -> None:
    """Raises DeviceError or StageError if a stage cannot time its trials."""
    if work.device.evidence.get("time") != "measured":
        why = work.session.absent or f"the timings of {work.device.name} are not measured"
        raise DeviceError(f"a stage needs timings to decide: {why}", "attach the device")
    if why := work.why_not_run(exporter.name):
        raise StageError(f"no latency can be measured: {why}", "put a format that runs here first in `export`")
