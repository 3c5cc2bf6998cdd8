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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

from edgepack.compress.contract import Context
from edgepack.compress.training.team import Team
from edgepack.config.recipe import Recipe
from edgepack.core.errors import DeviceError, EdgepackError
from edgepack.core.events import StepProgress
from edgepack.core.files import digest
from edgepack.core.frozen import Json
from edgepack.measure.processes import leash, pools
from edgepack.workflows.build.planning.keys import trains
from edgepack.workflows.build.planning.step import Step
from edgepack.workflows.build.workspace import Workspace

READY = "ready"
_PATIENCE = timedelta(days=7)  # how long a process waits for the others: a stage may time hundreds of files meanwhile
_ENDING = 60.0  # seconds


def size_of(work: Workspace, step: Step) -> int:
    """Return how many processes train together in this step. A user's own trainer starts its processes itself."""
    if step.choice is work.recipe.model or not trains(step.plugin):
        return 1
    own = any(each.trainer for each in step.plugin.config.trainings)
    return 1 if own else work.recipe.hardware.processes


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
        others = [
            stack.enter_context(
                _started(_job(work, step, context, Team(rank, size), place), work.recipe.hardware.threads)
            )
            for rank in range(1, size)
        ]
        for each in others:
            each.wait_until_ready()
        try:
            with joined(place, Team(0, size), on_gpu=work.recipe.hardware.gpu is not None) as team:
                yield team
        except EdgepackError:
            raise
        except RuntimeError as error:  # what torch raises where a connection ends
            for each in others:
                each.check(error)
            raise
        for each in others:
            each.finish()


@contextmanager
def joined(place: str, team: Team, *, on_gpu: bool) -> Iterator[Team]:
    """Connect this process with the rest of its team while the block runs."""
    import torch

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # no other computer takes part, and none may listen
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    torch.distributed.init_process_group(
        backend, init_method=f"file://{place}", rank=team.rank, world_size=team.size, timeout=_PATIENCE
    )
    try:
        yield team
    finally:
        torch.distributed.destroy_process_group()


def with_team(context: Context, team: Team) -> Context:
    """Return the context for a process of the team: what is measured is measured by the first one alone."""
    latency, size = context.latency, context.size
    return replace(
        context,
        team=team,
        latency=latency and (lambda candidate: team.first(lambda: latency(candidate))),
        size=size and (lambda candidate: team.first(lambda: size(candidate))),
    )


def content(recipe: Recipe) -> str:
    """Return a digest of what the processes must agree on."""
    stages = [{stage.name: stage.plain()} for stage in recipe.stages]
    return digest([recipe.task, recipe.model.plain(), recipe.data.name, recipe.data.plain(), recipe.seed, stages])


def _job(work: Workspace, step: Step, context: Context, team: Team, place: str) -> Json:
    recipe = work.recipe
    return {
        "recipe": str(recipe.file),
        "overrides": [*recipe.overrides],
        "device": recipe.device,
        "content": content(recipe),
        "store": str(work.store.root),
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
                [sys.executable, "-P", "-m", "edgepack.workflows.build.follower", json.dumps(job)],
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

    def _error(self) -> DeviceError:
        self.said.seek(0)
        said = self.said.read()
        logging.getLogger(__name__).error("a process that trains failed:\n%s", said)
        lines = [line for line in said.strip().splitlines() if line.strip()]
        code = self.process.returncode
        why = lines[-1] if lines else f"it ended with code {code}"
        killed = "if the memory is full, train with fewer: --set compute.processes=1"
        return DeviceError(
            f"a process that trains failed: {why}", killed if code < 0 else "see build.log, and build again"
        )
