"""MLflow: a run on a tracking server, in a database, or in a folder."""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import Field, field_validator

from edgepack.core.frozen import Frozen
from edgepack.deliver.contract import BuildSummary, Point, TrackedBuild, missing

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_NOT_ALLOWED = re.compile(r"[^\w\-. :/]")  # in names
_MOST = {"metrics": 1000, "params": 100, "tags": 100}  # in one request
_LONGEST = {"params": 6000, "tags": 5000}  # characters of a value
# For its process alone. By default an unreachable server is tried for minutes, MLflow reports to its makers what is
# used, and it refuses folders, which it does not develop further.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


class Config(Frozen):
    uri: str | None = Field(
        default=None, description="tracking server, or a folder; default: the variable MLFLOW_TRACKING_URI"
    )
    experiment: str = Field(default="edgepack", min_length=1, description="the experiment, made if there is none")

    @field_validator("uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        if uri and "@" in uri.partition("://")[2].partition("/")[0]:
            raise ValueError("leave the password out: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD hold it")
        return uri


def unavailable(config: Config) -> str:
    if message := missing("mlflow", "mlflow"):
        return message
    uri = _uri(config)
    if not uri:
        return "it has no server: give it a `uri`, or set MLFLOW_TRACKING_URI"
    if uri.startswith(_DATABASES) and missing("sqlalchemy", ""):
        return "to write to a database itself it needs the whole of MLflow: pip install mlflow"
    return ""


def _uri(config: Config) -> str:
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI", "")


def start(config: Config, build: TrackedBuild) -> "Run":
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    uri = _uri(config)
    run = Run(MlflowClient(uri), uri, config.experiment, build)
    try:
        run.batch(params=build.parameters)
    except BaseException:  # also when it is stopped: nobody else would end the run on the server
        with suppress(Exception):
            run.client.set_terminated(run.id, _STATUS["failed"])
        raise
    return run


class Run:
    def __init__(self, client: Any, uri: str, experiment: str, build: TrackedBuild) -> None:
        self.client = client
        id = _experiment(client, experiment)
        tags = {**build.tags, "mlflow.source.name": build.tags.get("recipe_file", "")}
        if commit := build.tags.get("git.commit"):
            tags["mlflow.source.git.commit"] = commit
        begun = int(build.started_at * 1000)
        self.id = client.create_run(id, begun, tags=_texts(tags, "tags"), run_name=build.recipe).info.run_id
        address = f"{uri.rstrip('/')}/#/experiments/{id}/runs/{self.id}"
        self.where = address if uri.startswith("http") else f"{uri}, experiment {experiment}, run {self.id}"

    def log(self, points: Sequence[Point]) -> None:
        self._metrics(
            (f"{point.curve}/{name}", figure, point.step) for point in points for name, figure in point.figures.items()
        )

    def end(self, summary: BuildSummary) -> None:
        try:
            self._metrics((name, figure, 0) for name, figure in summary.metrics.items())
            self.batch(tags={**summary.tags, "mlflow.note.content": summary.tags.get("summary", "")})
            for file in summary.files:
                self.client.log_artifact(self.id, str(file))
        finally:  # also without the files, if their store is of a kind that is not installed
            self.client.set_terminated(self.id, _STATUS[summary.status])

    def batch(self, **values_by_kind: Mapping[str, object]) -> None:
        """Log parameters or tags."""
        from mlflow.entities import Param, RunTag

        for kind, values in values_by_kind.items():
            make = {"params": Param, "tags": RunTag}[kind]
            self._send(kind, [make(name, text) for name, text in _texts(values, kind).items()])

    def _metrics(self, figures: Iterator[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._send("metrics", [Metric(_name(name), figure, now, step) for name, figure, step in figures])

    def _send(self, kind: str, values: Sequence[object]) -> None:
        most = _MOST[kind]
        for i in range(0, len(values), most):
            self.client.log_batch(self.id, **{kind: values[i : i + most]})


def _experiment(client: Any, name: str) -> str:
    """Return the id of an experiment, made if there is none; another build may make it at the same time."""
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            known = client.get_experiment_by_name(name)
            if known is None:
                raise
    return str(known.experiment_id)


def _name(name: str) -> str:
    return _NOT_ALLOWED.sub("_", name)[:250]


def _texts(values: Mapping[str, object], kind: str) -> dict[str, str]:
    return {_name(name): str(value)[: _LONGEST[kind]] for name, value in values.items()}
