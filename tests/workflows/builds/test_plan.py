"""What would run, and why: keys, the store, and the words for what changed."""

from pathlib import Path
from typing import Any

import pytest
from factories import answers, built, device, edgepack, recipe, recipe_file, recipe_text

from edgepack.config import plugins
from edgepack.config.device import Device, load_device
from edgepack.config.recipe import Recipe, resolve
from edgepack.config.recipe_reading import load_recipe
from edgepack.core import provenance
from edgepack.judge.baseline import Baseline
from edgepack.judge.history import Figure, HistoryEntry, key_of, taken
from edgepack.workflows.build.planning.planner import Planner, plan
from edgepack.workflows.build.planning.step import Plan
from edgepack.workflows.build.store import Store

CANDIDATES = ["model", "train", "distill", "prune", "factorize", "quantize"]
MODEL_FILES = ["export executorch", "export onnx"]
TEACHER_FILES = ["export teacher (executorch)", "export teacher (onnx)"]
FILES = ["executorch", "onnx", "teacher (executorch)", "teacher (onnx)"]


@pytest.fixture
def store(own_place: Path) -> Store:
    return Store(own_place / "store")


@pytest.fixture
def board() -> Device:
    return device("board", controls={"threads": 1})


MEASURED = {*(f"evaluate {file}" for file in FILES), *(f"time {file}" for file in FILES[:2])}


def _reasons(found: Plan) -> dict[str, str]:
    """Why each step that is not cached must run."""
    return {step.name: step.reason for step in found.steps if not step.cached}


def _keys(what: Recipe, where: Device, store: Store) -> dict[str, str]:
    return {step.name: step.key for step in plan(what, where, store).steps}


def test_the_steps_come_in_the_order_of_the_work(store: Store, board: Device) -> None:
    names = [step.name for step in plan(recipe(), board, store).steps]
    looks = ["reference outputs", *(f"evaluate {file}" for file in FILES), *(f"time {file}" for file in FILES[:2])]
    assert names == [*CANDIDATES, *MODEL_FILES, *TEACHER_FILES, *looks]
    assert len(names) == Planner(resolve(recipe(), board), store, facts=None).count


def test_with_an_empty_store_everything_runs(store: Store, board: Device) -> None:
    found = plan(recipe(), board, store)
    reasons = _reasons(found)
    assert not found.up_to_date
    assert len(reasons) == len(found.steps)
    assert {reasons[name] for name in CANDIDATES} == {"first time"}
    assert reasons["time onnx"] == "its file is not built yet"
    assert not store.root.exists()


NETS = """
from torch import nn
def make(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
"""


def test_what_functions_were_seen_to_read_is_part_of_the_keys_and_told(store: Store, board: Device) -> None:
    """Of the model, the data and a student; what is named from then on, or read by other code, is another matter."""
    for name in ("net.txt", "data.txt", "student.txt"):
        Path(name).write_text("1")
    Path("own_nets.py").write_text(NETS)
    Path("own_data.py").write_text("def load(): ...")
    data = {"python": {"function": "own_data:load", "shape": [1, 8, 8], "labels": list("abcdefghij")}}
    student = {"python": "own_nets:make", "args": {"width": 4}}
    stages = [{"train": {"epochs": 1}}, {"distill": {"student": student}}]

    def what() -> Recipe:
        return recipe(model={"python": "own_nets:make"}, data=data, stages=stages)

    unread = _keys(what(), board, store)
    planner = Planner(resolve(what(), board), store, facts=None)
    own = planner.recipe
    planner.reads.note(own.model, ["net.txt"])
    planner.reads.note(own.model, ["$OWN_WIDTH"])  # and the first one still counts
    planner.reads.note(own.data, ["data.txt"])
    planner.reads.note(own.stages[1].config.student, ["student.txt"])
    built(what(), board, store)
    first = plan(what(), board, store)
    assert first.up_to_date
    assert not {step.key for step in first.steps if step.kind == "candidate"} & {*unread.values()}
    for name, step in {"net.txt": "model", "data.txt": "model", "student.txt": "distill"}.items():
        Path(name).write_text("2")
        reasons = _reasons(plan(what(), board, store))
        assert next(iter(reasons.items())) == (step, f"{name} changed")
        assert ("reference outputs" in reasons, "train" in reasons) == (True, step == "model")
        Path(name).write_text("1")
    Path("net.txt").unlink()
    assert _reasons(plan(what(), board, store))["model"] == "net.txt changed"
    Path("net.txt").write_text("1")
    assert plan(what(), board, store).up_to_date
    Path("own_nets.py").write_text(NETS + "# other code\n")
    Path("net.txt").write_text("2")
    assert _reasons(plan(what(), board, store))["model"] == "another file"


@pytest.mark.parametrize("stage", ["train", "prune"])
def test_another_code_of_a_trainer_trains_again_and_is_told(stage: str, store: Store, board: Device) -> None:
    """Named by the stage itself, or by its recovery."""
    Path("own_trainer.py").write_text("import own_steps\n\ndef fit(job): ...")
    Path("own_steps.py").write_text("RATE = 1")
    named = {"trainer": "own_trainer:fit"}
    first = {"train": {"epochs": 1, **(named if stage == "train" else {})}}
    then = {"prune": {"ratio": "50 %", "recover": named if stage == "prune" else {}}}

    def what() -> Recipe:
        return recipe(stages=[first, then])

    built(what(), board, store)
    assert plan(what(), board, store).up_to_date
    Path("own_steps.py").write_text("RATE = 2")  # which the trainer imports
    reasons = _reasons(plan(what(), board, store))
    assert reasons[stage] == "the trainer's code changed" and ("train" in reasons) == (stage == "train")


def test_after_a_build_nothing_runs(store: Store, board: Device) -> None:
    built(recipe(), board, store)
    assert plan(recipe(), board, store).up_to_date


def test_only_what_comes_after_a_changed_stage_runs(store: Store, board: Device) -> None:
    built(recipe(), board, store)
    reasons = _reasons(plan(recipe(overrides=["stages.quantize.epochs=5"]), board, store))
    assert reasons["quantize"] == "epochs 3 -> 5"
    assert {reasons[name] for name in MODEL_FILES} == {"a step before it changed"}
    assert not {*CANDIDATES[:-1], *TEACHER_FILES} & {*reasons}


def test_no_step_is_said_to_have_left_the_store_when_an_earlier_one_changed(store: Store, board: Device) -> None:
    built(recipe(), board, store)
    reasons = _reasons(plan(recipe(overrides=["stages.quantize.epochs=5"]), board, store))
    assert "no longer in the cache" not in reasons.values()


@pytest.mark.parametrize(
    ("parts", "reasons"),
    [
        ({"seed": 1}, {"model": "seed 0 -> 1", "train": "a step before it changed"}),
        ({"model": {"torchvision": "resnet34"}}, {"model": "torchvision resnet18 -> resnet34"}),
        ({"data": {"digits": {"size": 16}}}, {"model": "the data changed"}),
        ({"export": ["executorch", {"onnx": {"opset": 19}}]}, {"export onnx": "opset 20 -> 19"}),
        ({"stages": ["train", "quantize"]}, {"quantize": "a step before it changed"}),
        ({"stages": ["train", {"prune": {"ratio": "50 %"}}, {"prune": {"ratio": "40 %"}}]}, {"prune (2)": "new step"}),
    ],
)
def test_a_change_is_told_in_words(parts: dict[str, Any], reasons: dict[str, str], store: Store, board: Device) -> None:
    built(recipe(), board, store)
    found = _reasons(plan(recipe(**parts), board, store))
    assert {name: found.get(name, "")[: len(why)] for name, why in reasons.items()} == reasons


def test_several_changes_are_all_told(store: Store, board: Device) -> None:
    built(recipe(), board, store)
    changed = recipe(overrides=["stages.prune.ratio=40 %", "stages.prune.recover.epochs=7"])
    assert _reasons(plan(changed, board, store))["prune"] == "ratio 50 % -> 40 %, epochs 2 -> 7"


@pytest.mark.parametrize(
    "parts",
    [
        {"budgets": {}},
        {"budgets": {"size": "1 B", "latency.p50": "9 ms", "memory.peak": "1 MB", "parity": "1 %"}},
        {"name": "another"},
        {"stages": [{"train": {"epochs": 6, "learning_rate": 0.001, "batch_size": 64}}]},
    ],
    ids=["none", "others", "name", "defaults"],
)
def test_what_changes_no_result_changes_no_key(parts: dict[str, Any], store: Store, board: Device) -> None:
    first: dict[str, Any] = {"stages": [{"train": {"epochs": 6}}]}
    assert _keys(recipe(**first), board, store) == _keys(recipe(**{**first, **parts}), board, store)


def test_keys_do_not_depend_on_where_the_recipe_lies(store: Store, board: Device, own_place: Path) -> None:
    (own_place / "elsewhere.yaml").write_text(recipe_text())
    assert _keys(load_recipe("elsewhere.yaml"), board, store) == _keys(recipe(), board, store)


def test_a_budget_added_or_removed_leaves_a_build_up_to_date(store: Store, board: Device) -> None:
    built(recipe(), board, store)
    for budgets in ({}, {"size": "1 kB", "latency.p90": "7 ms"}):
        assert plan(recipe(budgets=budgets), board, store).up_to_date


def test_only_a_stage_that_uses_a_budget_runs_again_for_it(store: Store, board: Device) -> None:
    stages = [{"train": {"epochs": 6}}, {"quantize": {"fp32": "auto"}}]
    built(recipe(stages=stages, budgets={"size": "1 MB"}), board, store)
    assert plan(recipe(stages=stages, budgets={"size": "1 MB", "latency.p50": "9 ms"}), board, store).up_to_date
    reasons = _reasons(plan(recipe(stages=stages, budgets={"size": "2 MB"}), board, store))
    assert ("train" in reasons, reasons["quantize"]) == (False, "size 1 MB -> 2 MB")


def test_threads_of_the_device_concern_what_is_measured_only(
    store: Store, board: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    built(recipe(), board, store)
    reasons = _reasons(plan(recipe(), device("board", controls={"threads": 2}), store))
    assert {*reasons} == MEASURED
    assert {*reasons.values()} == {"threads 1 -> 2"}


def test_a_fact_of_the_hardware_concerns_the_stages_that_read_it(store: Store, board: Device) -> None:
    built(recipe(), board, store)
    other = device("board", controls={"threads": 1}, quantization={"channel_multiple": 16})
    reasons = _reasons(plan(recipe(), other, store))
    assert reasons["distill"] == "channel_multiple 8 -> 16"
    assert reasons["prune"] == "channel_multiple 8 -> 16, a step before it changed"
    assert not {"model", "train", *TEACHER_FILES} & {*reasons}


def test_two_devices_share_what_does_not_depend_on_them(store: Store, board: Device) -> None:
    built(recipe(), board, store)
    other = device("phone", quantization={"channel_multiple": 16}, controls={"threads": 1})
    assert [step.name for step in plan(recipe(), other, store).steps if step.cached][:2] == CANDIDATES[:2]


def test_remeasure_runs_the_measurements_and_nothing_else(store: Store, board: Device) -> None:
    built(recipe(), board, store)
    reasons = _reasons(plan(recipe(), board, store, remeasure=True))
    assert {*reasons} == MEASURED
    assert {*reasons.values()} == {"requested by --remeasure"}


def test_what_was_removed_from_the_store_runs_again(store: Store, board: Device) -> None:
    built(recipe(), board, store)
    for entry in store.entries():
        if entry.ingredients.get("plugin") == "prune":
            (entry.path / "record.json").unlink()
    assert _reasons(plan(recipe(), board, store)) == {"prune": "no longer in the cache"}


def test_a_checkpoint_counts_by_what_is_in_it(store: Store, board: Device, own_place: Path) -> None:
    def first_key(content: str) -> str:
        (own_place / "weights.safetensors").write_text(content)
        model = {"torchvision": "resnet18", "checkpoint": "weights.safetensors"}
        return plan(recipe(model=model, stages=[]), board, store).steps[0].key

    assert first_key("one") == first_key("one") != first_key("two")


def test_a_timing_that_does_not_decide_its_budget_takes_more_processes(store: Store, board: Device) -> None:
    def noisy(count: int) -> Any:
        return lambda artifact: [*answers(count // 2, 1.0), *answers(count - count // 2, 3.0)]

    within, across = {"latency.p50": "5 ms"}, {"latency.p50": "2 ms"}
    built(recipe(budgets=within), board, store, timings=noisy(7))
    assert plan(recipe(budgets=within), board, store).up_to_date
    assert _reasons(plan(recipe(budgets=across), board, store)) == {
        f"time {file}": "its budget is not decided yet" for file in FILES[:2]
    }


def test_what_stayed_inconclusive_is_taken_again_so_that_ci_may_retry(store: Store, board: Device) -> None:
    across = recipe(budgets={"latency.p50": "2 ms"})
    built(across, board, store, timings=lambda artifact: [*answers(10, 1.0), *answers(11, 3.0)])
    assert set(_reasons(plan(across, board, store))) == {f"time {file}" for file in FILES[:2]}


def _noisy(low: float, high: float) -> Any:
    return lambda artifact: [*answers(3, low), *answers(4, high)]


def test_a_timing_that_cannot_be_told_from_its_baseline_takes_more_processes(store: Store, board: Device) -> None:
    relative = recipe(budgets={"relative": {"latency.p50": "10 %"}})
    first = built(relative, board, store, timings=_noisy(1.0, 1.2))
    timed = next(step for step in first.steps if step.name == "time onnx")
    where = {**timed.ingredients["where"], "protocol": timed.ingredients["protocol"]["name"]}

    def against(base_ms: float, sha256: str = "") -> list[str]:
        figure = Figure(
            metric="latency.p50",
            artifact="onnx",
            value=base_ms,
            low=base_ms,
            high=base_ms,
            evidence="measured",
            taken_at=0.0,
            series=key_of("latency.p50", where),
            taken=taken(sha256, where),
        )
        about: dict[str, Any] = {"schema": "edgepack.history/1", "recipe": "tiny", "device": "board"}
        line = HistoryEntry(**about, started_at=0, exit_code=0, figures=(figure,))
        return [*_reasons(plan(relative, board, store, baseline=Baseline(lines=(line,))))]

    assert against(2.0) == []  # far below
    assert against(1.0) == ["time onnx"]
    assert against(0.5) == []  # far above
    assert against(1.0, timed.ingredients["files"][0]) == []  # the same file: what differs is noise
    assert plan(relative, board, store).up_to_date  # no baseline is known


def test_a_model_that_is_trained_on_after_a_cut_is_no_teacher(store: Store, board: Device) -> None:
    stages = ({"train": {"epochs": 1}}, {"prune": {"ratio": "50 %"}}, {"train": {"epochs": 1}})
    found = {step.name: step for step in plan(recipe(stages=stages), board, store).steps}
    assert found["export teacher (onnx)"].ingredients["parent"] == found["train"].key
    assert found["export onnx"].ingredients["parent"] == found["train (2)"].key


def test_the_teacher_is_what_the_last_teaching_stage_left(store: Store, board: Device) -> None:
    found = {step.name: step for step in plan(recipe(), board, store).steps}
    assert found["export teacher (onnx)"].ingredients["parent"] == found["train"].key
    assert found["quantize"].ingredients["teacher"] == found["train"].key
    assert found["export onnx"].ingredients["parent"] == found["quantize"].key


def test_a_plan_is_told_one_line_a_step(own_place: Path) -> None:
    path = recipe_file()
    ran = edgepack("plan", str(path), "--store", "store")
    assert ran.code == 0
    assert ran.out.splitlines()[:2] == ["tiny for this computer", f"  {'model':29}  run: first time"]
    built(load_recipe(path), load_device("host"), Store("store"))
    ran = edgepack("plan", str(path), "--store", "store")
    assert ran.out.startswith("tiny for this computer: up to date\n")
    assert all(" cached " in line for line in ran.out.splitlines()[1:])


def test_a_budget_on_a_percentile_times_again_what_was_run_too_seldom() -> None:
    store, board = Store("store"), device()
    built(recipe(), board, store)
    with_p90 = {"size": "600 kB", "latency.p90": "5 ms"}
    assert plan(recipe(budgets=with_p90), board, store).up_to_date
    again = plan(recipe(budgets={**with_p90, "latency.p99": "5 ms"}), board, store)
    assert {step.name: step.reason for step in again.steps if step.reason} == {
        name: "its budget needs more runs" for name in ("time executorch", "time onnx")
    }


@pytest.mark.parametrize(
    ("kind", "name", "runs"),
    [
        ("tasks", "image_classification", "model"),
        ("datasets", "digits", "model"),
        ("importances", "taylor", "prune"),
        ("quantizers", "xnnpack", "quantize"),
        ("backends", "xnnpack", "export executorch"),
    ],
)
def test_a_plugin_of_another_version_runs_again(
    kind: str, name: str, runs: str, store: Store, board: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(recipe(), board, store)
    module = plugins.load(kind, name)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert next(iter(_reasons(plan(recipe(), board, store)))) == runs


@pytest.mark.parametrize(
    ("stages", "model", "runs"),
    [
        (["train"], {"timm": "resnet18"}, {"model"}),
        ([{"train": {"optimizer": "timm/lamb"}}], None, {"train"}),
        (["train", {"prune": {"ratio": "50 %", "recover": {"optimizer": "timm/lamb"}}}], None, {"prune"}),
        (["train", {"distill": {"student": {"timm": "mobilenetv3_small_050"}}}], None, {"distill"}),
        (["train", "quantize"], None, set()),
    ],
    ids=["model", "optimizer", "recovery", "student", "none of it"],
)
def test_another_version_of_timm_concerns_what_uses_it(
    stages: Any, model: Any, runs: set[str], store: Store, board: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = recipe(stages=stages, **({"model": model} if model else {}))
    built(what, board, store)
    real = provenance._version
    provenance.versions.cache_clear()
    monkeypatch.setattr(provenance, "_version", lambda name: "9.9" if name == "timm" else real(name))
    found = _reasons(plan(what, board, store))
    provenance.versions.cache_clear()
    assert {name for name, why in found.items() if "9.9" in why} == runs
