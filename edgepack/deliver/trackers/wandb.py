"""Weights & Biases: a run on its server, or with `mode: offline` in a folder that `wandb sync` uploads later."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from edgepack.core.frozen import Frozen
from edgepack.deliver.contract import BuildSummary, Point, TrackedBuild, missing


class Config(Frozen):
    project: str | None = Field(default=None, description="default: the variable WANDB_PROJECT, or edgepack")
    entity: str | None = Field(default=None, description="user or team; default: the variable WANDB_ENTITY, or yours")
    mode: Literal["online", "offline"] | None = Field(
        default=None, description="online or offline; default: the variable WANDB_MODE, or online"
    )
    folder: str | None = Field(
        default=None, description="folder of its files; default: the variable WANDB_DIR, or this one"
    )


def unavailable(config: Config) -> str:
    return missing("wandb", "wandb")


def start(config: Config, build: TrackedBuild) -> "Run":
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    if config.folder:
        Path(config.folder).mkdir(parents=True, exist_ok=True)
    # What it would record by itself is left out: it knows of its own process only, and measuring takes time of a core.
    quiet = wandb.Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        init_timeout=30,
    )
    started = wandb.init(
        project=config.project or os.environ.get("WANDB_PROJECT", "edgepack"),
        entity=config.entity,
        name=build.recipe,
        config={**build.parameters, **build.tags},
        mode=config.mode,
        dir=config.folder,
        settings=quiet,
    )
    return Run(started)


class Run:
    def __init__(self, run: Any) -> None:
        self.run, self.curves = run, set[str]()
        self.where = str(run.settings.sync_dir if run.offline else run.url)

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            step = f"{point.curve}/step"  # each curve has an axis of its own: the run's own one never goes back
            if point.curve not in self.curves:
                self.curves.add(point.curve)
                self.run.define_metric(f"{point.curve}/*", step_metric=step)
            figures = {f"{point.curve}/{name}": figure for name, figure in point.figures.items()}
            self.run.log({step: point.step, **figures})

    def end(self, summary: BuildSummary) -> None:
        import wandb

        self.run.summary.update({**summary.metrics, **summary.tags})
        for file in summary.files:
            # It would keep a link to a file elsewhere, which the next build overwrites.
            own = shutil.copy(file, self.run.dir)
            self.run.save(own, base_path=self.run.dir, policy="now")
            if file.suffix == ".html":
                self.run.log({file.stem: wandb.Html(file.read_text(encoding="utf-8"), inject=False)})
        self.run.finish(exit_code=int(summary.status != "finished"))
