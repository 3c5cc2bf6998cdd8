"""The other processes of a training: started for one stage, in which they do what this process does.

    with followers.of(work, step) as team:
        ...                                 # run the stage, with this team

They find what they need by the job: the recipe, and in the store the candidates that the stage begins with. They are
ready before the stage begins, and end with it, or as soon as this process does.
"""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

from edgepack.compress.contract import Context
from edgepack.compress.training.team import Team
from edgepack.config.recipe import Recipe
from edgepack.core.errors import DeviceError, EdgepackError, RecipeError, StageError, reason
from edgepack.core.events import StepProgress
from edgepack.core.files import digest
from edgepack.core.frozen import Json
from edgepack.measure.processes import leash, pools
from edgepack.workflows.build.planning.keys import data_fingerprint, trains, trains_itself
from edgepack.workflows.build.planning.step import Step
from edgepack.workflows.build.workspace import Workspace

READY = "ready"
ERROR = "edgepack-error "  # begins the line in which a process says why it failed
# With the path of this process: a user's code may lie beside the script that builds.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from edgepack.workflows.build.follower import main; main()"
)
_GLANCE, _GRACE = 0.5, 15.0  # seconds
_PATIENCE = timedelta(days=7)  # how long a process waits for the others: a stage may time hundreds of files meanwhile
_ENDING = 60.0  # seconds


def size_of(work: Workspace, step: Step) -> int:
    """Return how many processes train together in this step."""
    if step.choice is work.recipe.model or not trains(step.plugin) or trains_itself(step.plugin):
        return 1
    return work.recipe.hardware.processes


@contextmanager
def of(work: Workspace, step: Step, context: Context) -> Iterator[Team]:
    """Provide the team of a stage, of which this process is the first.

    Raises DeviceError if another process of it fails.
    """
    size = size_of(work, step)
    if size == 1:
        yield Team()
        return
    _ = work.data  # what it keeps in the store is there for all
    with TemporaryDirectory(prefix="edgepack-team-") as folder, ExitStack() as stack:
        place = str(Path(folder) / "rendezvous")
        work.emit(StepProgress(doing=f"starting {size - 1} more processes", done=0, total=1))
        jobs = [_job(work, step, context, Team(rank, size), place) for rank in range(1, size)]
        others = [stack.enter_context(_started(job, work.recipe.hardware.threads)) for job in jobs]
        for each in others:
            each.wait_until_ready()
        with _watched(others):
            try:
                with joined(place, Team(0, size), on_gpu=work.recipe.hardware.gpu is not None) as team:
                    yield team
            except RuntimeError as error:
                if _is_lost_connection(error):
                    for each in others:
                        each.check(error)
                raise
            for each in others:
                each.finish()


@contextmanager
def joined(place: str, team: Team, *, on_gpu: bool) -> Iterator[Team]:
    """Connect this process with the rest of its team while the block runs."""
    import torch
    from torch.distributed import distributed_c10d

    for library in ("GLOO", "NCCL"):  # no other computer takes part, so none is listened to
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    if on_gpu:
        torch.cuda.set_device(team.rank)
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        init_method=f"file://{place}",
        rank=team.rank,
        world_size=team.size,
        timeout=_PATIENCE,
    )
    try:
        yield team
    except BaseException:
        distributed_c10d._abort_process_group()  # to destroy it would wait for the others
        raise
    torch.distributed.destroy_process_group()


@contextmanager
def _watched(others: "Sequence[_Follower]") -> Iterator[None]:
    """Break the connections of this process as soon as another one fails: NCCL does not notice that it is gone."""
    over = threading.Event()

    def watch() -> None:
        from torch.distributed import distributed_c10d

        while not over.wait(_GLANCE):
            if any(each.process.poll() for each in others):
                if not over.wait(_GRACE):  # gloo notices by itself, and says more
                    distributed_c10d._abort_process_group()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_lost_connection(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def with_team(context: Context, team: Team) -> Context:
    """Return the context for a process of the team: what is measured is measured by the first one alone."""
    latency, size = context.latency, context.size
    return replace(
        context,
        team=team,
        latency=latency and (lambda candidate: team.from_first(lambda: latency(candidate))),
        size=size and (lambda candidate: team.from_first(lambda: size(candidate))),
    )


def content(recipe: Recipe) -> str:
    """Return a digest of what the processes must agree on: the recipe, and its data as they are now."""
    stages = [{stage.name: stage.plain()} for stage in recipe.stages]
    how = recipe.compute.model_dump(mode="json", exclude={"workers"})
    data = [data_fingerprint(recipe.data), recipe.cuts.samples]
    return digest([recipe.task.name, recipe.task.plain(), recipe.model.plain(), data, recipe.seed, stages, how])


def _job(work: Workspace, step: Step, context: Context, team: Team, place: str) -> Json:
    recipe = work.recipe
    return {
        "recipe": str(recipe.file),
        "overrides": [*recipe.overrides],
        "device": recipe.device,
        "content": content(recipe),
        "store": str(work.store.root),
        "room": work.room,
        "stage": next(number for number, stage in enumerate(recipe.stages) if stage is step.choice),
        "parent": step.ingredients["parent"],
        "teacher": step.ingredients["teacher"] if context.teacher else None,
        "quantization": context.quantization.model_dump_json(),
        "quantizer": context.quantizer,
        "tolerance": context.tolerance,
        "size_budget": context.size_budget,
        "unfinished": str(context.checkpoints.folder),
        "rank": team.rank,
        "size": team.size,
        "place": place,
    }


@contextmanager
def _started(job: Json, threads: int) -> Iterator["_Follower"]:
    with ExitStack() as held:
        said = held.enter_context(TemporaryFile("w+", encoding="utf-8", errors="replace"))
        process = held.enter_context(
            subprocess.Popen(
                [sys.executable, "-P", "-c", _START, json.dumps(job), json.dumps(sys.path)],
                stdin=held.enter_context(leash()),
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={**os.environ, **pools(threads)},
            )
        )
        held.callback(process.kill)  # called before its end is waited for
        yield _Follower(process, said)


@dataclass(frozen=True)
class _Follower:
    process: "subprocess.Popen[str]"
    said: IO[str]

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == READY:
                return
        self.process.wait()
        raise self._error()

    def check(self, cause: BaseException) -> None:
        """Raises DeviceError if it has failed: then the connection ended for that."""
        try:
            failed = self.process.wait(timeout=5) != 0
        except subprocess.TimeoutExpired:
            return
        if failed:
            raise self._error() from cause

    def finish(self) -> None:
        try:
            if self.process.wait(timeout=_ENDING):
                raise self._error()
        except subprocess.TimeoutExpired:
            raise DeviceError("a process that trains did not end with the others", "build again") from None

    def _error(self) -> EdgepackError:
        self.said.seek(0)
        said = self.said.read()
        logging.getLogger(__name__).error("a process that trains failed:\n%s", said)
        for line in said.splitlines():
            if line.startswith(ERROR):
                return told(json.loads(line.removeprefix(ERROR)))
        code = self.process.returncode
        killed = "if the memory is full, train with fewer: --set compute.processes=1"
        hint = killed if code < 0 else "see build.log, and build again"
        return DeviceError(f"a process that trains failed: it ended with code {code}", hint)


def described(error: Exception) -> Json:
    """Return an error as a process tells it; `told` makes it again."""
    if isinstance(error, EdgepackError):
        return {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
    return {"kind": "StageError", "message": reason(error), "hint": "see build.log for the traceback"}


def told(facts: Json) -> EdgepackError:
    """
    >>> told(described(StageError("a batch of 64 does not fit", "use batch_size: 8"))).hint
    'use batch_size: 8'
    """
    kind = {each.__name__: each for each in (RecipeError, StageError)}.get(facts["kind"], DeviceError)
    return kind(facts["message"], facts["hint"])
