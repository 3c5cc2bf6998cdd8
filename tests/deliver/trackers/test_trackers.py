"""What each tracker stores, read back by its own library; no server and no network."""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from factories import python

from edgepack.config import plugins
from edgepack.config.document import Nested
from edgepack.deliver.contract import BuildSummary, Point, TrackedBuild

BUILD = TrackedBuild(
    recipe="tiny",
    started_at=1.7e9,
    parameters={"recipe.seed": 0, "recipe.export.0.onnx": "a | b", "device.name": "the board"},
    tags={"git.commit": "abc", "recipe_file": "recipes/tiny.yaml"},
)
CURVE = "train/training on the labels/epochs"
POINTS = (
    Point(curve=CURVE, step=0, figures={"score": 0.25}),
    Point(curve=CURVE, step=1, figures={"score": 0.75, "loss": 0.5}),
)
NAMED = {"device.id": "board", "verdicts/teacher (onnx)/size": "pass", "summary": "every budget met"}


def _logged(name: str, status: str = "finished", /, **settings: Any) -> str:
    """A whole run of a tracker; gives the place that it names."""
    choice = plugins.choose("trackers", {name: settings})
    Path("report.html").write_text("<h1>a report</h1>")
    Path("report.md").write_text("# a report")
    run = choice.module.start(choice.config, BUILD)
    run.log(POINTS[:1])
    run.log(POINTS[1:])
    files = tuple(Path(file).absolute() for file in ("report.html", "report.md"))
    metrics = {"files/teacher (onnx)/size": 40e6, "budgets/onnx/size/limit": 6e5}
    summary = {"status": status, "metrics": metrics, "tags": NAMED, "files": files}
    run.end(BuildSummary.model_validate(summary))
    return str(run.where)


def test_tensorboard_shows_curves_figures_and_the_report_and_keeps_its_page() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    where = _logged("tensorboard")
    assert Path(where).parent == Path("runs/tiny")
    events = EventAccumulator(where).Reload()
    assert [(each.step, each.value) for each in events.Scalars(f"{CURVE}/score")] == [(0, 0.25), (1, 0.75)]
    assert events.Scalars("budgets/onnx/size/limit")[0].value == 6e5
    texts = {name: events.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in events.Tags()["tensors"]}
    assert "| recipe.export.0.onnx | a \\| b |" in texts["parameters"]
    assert "| verdicts/teacher (onnx)/size | pass |" in texts["outcome"]
    assert texts["report"] == "# a report"
    assert Path(where, "report.html").read_text() == "<h1>a report</h1>"


_MLFLOW = """
from mlflow import MlflowClient
client = MlflowClient("mlruns")
runs = client.search_runs([client.get_experiment_by_name("tests").experiment_id], order_by=["attributes.created"])
print(sorted(run.info.status for run in runs))
run = next(run for run in runs if run.info.status == "FINISHED")
data = run.data
print(run.info.run_name, data.params["recipe.seed"], data.tags["mlflow.source.git.commit"])
print(data.tags["verdicts/teacher _onnx_/size"], data.metrics["files/teacher _onnx_/size"])
history = client.get_metric_history(run.info.run_id, "train/training on the labels/epochs/score")
print([(each.step, each.value) for each in history], [each.path for each in client.list_artifacts(run.info.run_id)])
"""
_LOG = "import sys; sys.path[:0] = sys.argv[1:]; from test_trackers import _logged; "


def _alone(code: str) -> str:
    """As trackers run: in a process of their own, whose environment they may change."""
    ran = python(code, str(Path(__file__).parent), str(Path(__file__).parents[2] / "support"))
    assert ran.code == 0, ran.err
    return ran.out


def test_mlflow_has_a_run_with_parameters_curves_verdicts_and_reports() -> None:
    each = "print(_logged('mlflow', status, uri='mlruns', experiment='tests'))"
    out = _alone(f"{_LOG}\nfor status in ('finished', 'failed', 'killed'): {each}\n{_MLFLOW}").splitlines()
    assert all(place.startswith("mlruns, experiment tests, run ") for place in out[:3])
    assert out[3:] == [
        "['FAILED', 'FINISHED', 'KILLED']",
        "tiny 0 abc",
        "pass 40000000.0",
        "[(0, 0.25), (1, 0.75)] ['report.html', 'report.md']",
    ]


_REFUSED = """
from mlflow import MlflowClient
def refuse(*arguments, **kinds): raise OSError("the disk is full")
MlflowClient.log_batch = refuse
try: _logged("mlflow", uri="mlruns", experiment="tests")
except OSError as error: print(error)
client = MlflowClient("mlruns")
(run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
print(run.info.status)
"""


def test_a_run_of_mlflow_whose_parameters_are_refused_has_failed() -> None:
    assert _alone(f"{_LOG}\n{_REFUSED}").splitlines() == ["the disk is full", "FAILED"]


def test_wandb_offline_has_curves_with_steps_of_their_own_the_summary_and_the_report() -> None:
    where = Path(_alone(f"{_LOG}print(_logged('wandb', mode='offline', folder='kept'))").strip())
    assert where.parent == Path("kept/wandb")
    records = [*_records(next(where.glob("*.wandb")))]
    (begun,) = (each.run for each in records if each.HasField("run"))
    assert (begun.display_name, begun.project) == ("tiny", "edgepack")
    assert {"recipe.seed": "0", "git.commit": '"abc"'}.items() <= {
        each.key: each.value_json for each in begun.config.update
    }.items()
    rows = [_values(each.history.item) for each in records if each.HasField("history")]
    assert {f"{CURVE}/step": "0", f"{CURVE}/score": "0.25"}.items() <= rows[0].items()
    assert {f"{CURVE}/step": "1", f"{CURVE}/score": "0.75"}.items() <= rows[1].items()
    assert any(each.metric.step_metric == f"{CURVE}/step" for each in records if each.HasField("metric"))
    summary: dict[str, str] = {}
    for each in records:
        summary |= _values(each.summary.update) if each.HasField("summary") else {}
    assert summary["verdicts/teacher (onnx)/size"] == '"pass"'
    assert summary["budgets/onnx/size/limit"] == "600000.0"
    assert [each.exit.exit_code for each in records if each.HasField("exit")] == [0]
    assert (where / "files/report.html").read_text() == "<h1>a report</h1>"
    assert not (where / "files/report.html").is_symlink()


def _values(items: Iterable[Any]) -> dict[str, str]:
    return {each.key or ".".join(each.nested_key): each.value_json for each in items}


def _records(file: Path) -> Iterator[Any]:
    """The records in a file of wandb: a log of LevelDB, in blocks of 32 KiB, after 7 bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the only or the last part
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.parametrize("name", plugins.names("trackers"))
def test_a_tracker_without_its_package_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    choice = plugins.choose("trackers", name)
    assert choice.module.unavailable(choice.config) == ""
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    assert choice.module.unavailable(choice.config).endswith(f"is not installed: pip install 'edgepack[{name}]'")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (None, "it has no server: give it a `uri`, or set MLFLOW_TRACKING_URI"),
        ("sqlite:///runs.db", "to write to a database itself it needs the whole of MLflow: pip install mlflow"),
        ("https://tracking.example", ""),
    ],
)
def test_mlflow_needs_a_place_that_it_can_write_to(
    uri: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None if package == "sqlalchemy" else package)
    choice = plugins.choose("trackers", {"mlflow": {"uri": uri}})
    assert choice.module.unavailable(choice.config) == message


def test_a_password_in_an_address_is_refused() -> None:
    with pytest.raises(Nested, match="leave the password out: MLFLOW_TRACKING_USERNAME"):
        plugins.choose("trackers", {"mlflow": {"uri": "https://me:word@tracking.example/x"}})
    assert plugins.choose("trackers", {"mlflow": {"uri": "https://tracking.example/@me"}})
