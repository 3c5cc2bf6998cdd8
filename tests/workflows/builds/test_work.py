"""What a build does beside its steps: times models that are only tried, doubts weights, lets the tokenizer travel."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy
import pytest
import torch
import torch_factories as tiny
from factories import artifact, at_work, build, recipe, recipe_file, texts, tokenizer
from picture_factories import write_folder
from torch_factories import tiny_models as tiny_models

from edgepack.config.device import load_device
from edgepack.config.document import ConfigError
from edgepack.config.recipe_reading import load_recipe
from edgepack.core.errors import DeviceError, StageError
from edgepack.core.events import Event, Note
from edgepack.core.files import digest
from edgepack.data.texts.tokenizer import encode, read
from edgepack.deliver.bundle.assemble import contents
from edgepack.measure import evaluate
from edgepack.workflows.build.bundling import bundle_parts
from edgepack.workflows.build.outcomes import CandidateOutcome
from edgepack.workflows.build.planning.step import Step, StepId
from edgepack.workflows.build.runner import Runner
from edgepack.workflows.build.steps import artifact as artifact_step
from edgepack.workflows.build.steps import candidate as candidate_step
from edgepack.workflows.build.steps import dry_run as dry_run_step
from edgepack.workflows.build.steps import evaluation, outputs
from edgepack.workflows.build.steps.trials import Trials
from edgepack.workflows.build.store import Entry, Store
from edgepack.workflows.build.workspace import Workspace


@pytest.fixture
def work() -> Workspace:
    recipe, device, store = load_recipe("quickstart"), load_device("host"), Store("store")
    return at_work(recipe, device, store)


@pytest.mark.parametrize(("trained", "score", "doubted"), [(True, 0.1, True), (True, 0.2, False), (False, 0.1, False)])
def test_weights_that_come_trained_and_know_nothing_are_doubted(
    work: Workspace, trained: bool, score: float, doubted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    work.emit = events.append
    monkeypatch.setattr(work.recipe.model.module, "trained", lambda config, signature: trained)
    candidate_step.warn_of_chance(work, score)
    assert ["no better than chance with 10 classes" in str(event) for event in events] == [True] * doubted


def test_a_latency_is_that_of_the_exported_file_on_the_device(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def ran(job: dict[str, Any]) -> dict[str, Any]:
        asked.append(job)
        return {"samples_ns": [2e6], "load_ms": 1, "first_ms": 1}

    monkeypatch.setattr(work.session, "run", ran)
    monkeypatch.setattr(work.recipe.exporters[0].module, "export", lambda candidate, config, path: path.touch())
    assert Trials(work).latency(dry_run_step.untrained(work)) == 2.0
    assert [(job["runtime"], job["mode"]) for job in asked] == [("executorch", "time")] * 3


def test_what_is_timed_alternately_is_written_once(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """But a model that a stage may have changed since is written anew."""
    written: list[str] = []

    def export(candidate: Any, config: Any, path: Path) -> None:
        written.append(candidate.form)
        path.write_bytes(bytes(len(written)))

    for exporter in work.recipe.exporters:
        monkeypatch.setattr(exporter.module, "export", export)
    monkeypatch.setattr(work.session, "run", lambda job: {"samples_ns": [2e6], "load_ms": 1, "first_ms": 1})
    exported = [replace(dry_run_step.untrained(work), form="exported") for _ in range(3)]
    trials = Trials(work)
    for candidate in (*exported[:2], *exported[:2], exported[2], exported[1]):
        trials.latency(candidate)
    assert len(written) == 3
    trials.latency(exported[0])
    assert (len(written), len(trials.written)) == (4, 2)
    assert trials.size(exported[0]) == 5  # the second format's
    for _ in range(2):
        trials.latency(dry_run_step.untrained(work))
    assert written == ["exported"] * 5 + ["eager"] * 2


def test_texts_travel_with_their_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told of the data, the raw texts beside their tensors, and the tokenizer in the bundle."""
    Path("nets.py").write_text("def net(): ...")
    Path(texts(), "sport/copy.txt").write_text(Path("news/sport/0.txt").read_text())
    data = {"text_folder": {"folder": "news", "tokenizer": tokenizer(), "max_length": 12}}
    model, stages = {"python": "nets:net"}, [{"train": {"epochs": 1}}]
    path = recipe_file(task="text_classification", data=data, model=model, stages=stages, export=["onnx"], budgets=None)
    recipe, device, store = load_recipe(path), load_device("host"), Store("store")
    work = at_work(recipe, device, store)
    events: list[Event] = []
    work.emit = events.append
    step = Step(id=StepId("outputs", "model"), key=digest("outputs"), ingredients={"parent": ""})
    monkeypatch.setattr(work, "candidate_of", lambda key: step)
    monkeypatch.setattr(work, "candidate", lambda step: SimpleNamespace(module=None))
    monkeypatch.setattr(
        "edgepack.compress.training.evaluation.predicted",
        lambda module, split: [((torch.zeros(len(split), 2),), SimpleNamespace(inputs=(), targets=split.targets))],
    )
    entry = store.make(step.kind, step.key, {}, lambda folder: outputs.do(work, step, folder).stored())
    assert [event.text for event in events if isinstance(event, Note)] == [
        "1 of 21 documents are copies of others: one of each is kept"
    ]
    monkeypatch.setattr(work, "entry", lambda id: entry)
    shipped_build = build(artifacts=())
    files = contents(shipped_build, recipe, device, bundle_parts(shipped_build, device, work))
    shipped = read(files["io/tokenizer.json"])
    for i, case in enumerate(json.loads(files["selftest/cases.json"])["cases"]):
        assert case["text"] == f"case-{i}.txt"
        made = encode(shipped, [files[f"selftest/{case['text']}"].decode()]).inputs()
        assert [files[f"selftest/{name}"] for name in case["inputs"]] == [array.tobytes() for array in made.values()]
    roles = {each["path"]: each["role"] for each in json.loads(files["manifest.json"])["files"]}
    assert (roles["io/tokenizer.json"], roles["selftest/case-2.txt"]) == ("deploy", "test")


@pytest.mark.parametrize(
    ("features", "saturates", "warned"),
    [("avx2 fma", False, True), ("avx2 fma", True, False), ("avx2 avx_vnni", False, False), ("neon", False, False)],
)
def test_products_that_saturate_are_told_unless_the_profile_knows(
    work: Workspace, features: str, saturates: bool, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    work.emit = events.append
    monkeypatch.setitem(work.session.facts, "features", features)
    knows = work.device.quantization.model_copy(update={"int8_saturates": saturates})
    work.device = replace(work.device, quantization=knows)
    dry_run_step.warn_of_saturation(work)
    assert ["int8 products saturate on " in str(event) for event in events] == [True] * warned


def test_products_that_saturate_on_what_stands_in_for_a_device_say_nothing_of_its_profile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = at_work(load_recipe("quickstart"), load_device("cortex-a55"), Store("store"))
    events: list[Event] = []
    work.emit = events.append
    monkeypatch.setitem(work.session.facts, "features", "avx2 fma")
    dry_run_step.warn_of_saturation(work)
    assert "this computer, which runs the files for Cortex-A55, estimated: int8 ONNX" in str(events[0])
    assert "device profile" not in str(events[0])


def test_a_file_that_cannot_be_looked_into_is_told(work: Workspace, tmp_path: Path) -> None:
    events: list[Event] = []
    work.emit = events.append
    made = dry_run_step.untrained(work)
    assert artifact_step.file_contents(work, SimpleNamespace(inspect=None), tmp_path / "model.pte", made) is None
    assert "the contents of model.pte could not be read (TypeError; see build.log for the traceback)" in str(events[0])
    unknown = SimpleNamespace(inspect=lambda path, candidate: None)
    assert artifact_step.file_contents(work, unknown, tmp_path / "model.pte", made) is None
    assert len(events) == 1  # an exporter need not know it


def test_what_stages_decide_by_timing_ends_before_any_training_where_nothing_can_be_timed() -> None:
    what = recipe(stages=[{"train": {"epochs": 1}}, {"quantize": {"fp32": "auto"}}], device="raspberry-pi-5")
    work = at_work(what, load_device("raspberry-pi-5"), Store("store"))
    with pytest.raises(DeviceError, match="a stage needs timings to decide: Raspberry Pi 5 is not configured"):
        dry_run_step.check(work)


DRAWN = """
import numpy, torch
from torch import nn

class Net(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.order, self.head = order, nn.Linear(64, 10)

    def forward(self, x):
        return self.head(x.flatten(1)[:, self.order])

def drawn():
    return Net(torch.tensor(numpy.random.permutation(64)))

def fixed():
    return Net(torch.arange(64).flip(0))
"""


OWN = """
from torch import nn

def own():
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10000), nn.Linear(10000, 10))
"""


@pytest.mark.parametrize("place", ["model", "distill"])
def test_a_model_that_is_another_each_time_is_refused_before_any_training(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("drawn_nets.py").write_text(DRAWN)
    drawn: dict[str, Any] = {"python": "drawn_nets:drawn"}
    student = {"distill": {"student": drawn, "epochs": 1}}
    model, stages = (drawn, []) if place == "model" else ({"torchvision": "resnet18", "width": "15 %"}, [student])
    data = {"digits": {"size": 8 if place == "model" else 32}}
    if place == "distill":
        Path("drawn_nets.py").write_text(DRAWN.replace("x.flatten(1)", "x[:, :, ::4, ::4].flatten(1)"))
    what = recipe(model=model, data=data, stages=[{"train": {"epochs": 1}}, *stages], export=["onnx"], budgets=None)
    with pytest.raises(StageError) as failure:
        dry_run_step.check(at_work(what, load_device("host"), Store("store")))
    assert failure.value.message.startswith(f"{place}, untrained: the model, made again with the same weights, gives")
    assert "'order' of the Net, is in no state dict and differs" in failure.value.message


@pytest.mark.parametrize(
    ("stages", "tried"),
    [
        ([], ["onnx eager 64"]),
        ([{"quantize": {"mode": "ptq"}}], ["onnx exported", "teacher (onnx) eager 64"]),
        ([{"factorize": {"rank": 4}}], ["onnx eager 8", "teacher (onnx) eager 64"]),
        ([{"distill": {"student": {"torchvision": "squeezenet1_1"}, "epochs": 1}}], ["teacher (onnx) eager 64"]),
    ],
    ids=["alike", "int8", "split in place", "a student of edgepack's own"],
)
def test_the_files_of_a_teacher_of_ones_own_are_tried_before_any_training(
    stages: list[dict[str, Any]], tried: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float, where the last candidate is not the same: what a runtime has in int8 it need not have in float.

    That the models are the same in another process is not looked at here.
    """
    from edgepack.measure import dry_run
    from edgepack.models.checks import steady

    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("own_nets.py").write_text(OWN)
    seen: list[str] = []

    def check(candidate: Any, exporter: Any, *rest: Any, **named: Any) -> None:
        first = next((each for each in candidate.module.modules() if isinstance(each, torch.nn.Linear)), None)
        seen.append(f"{candidate.form} {first.out_features}" if first else candidate.form)

    def guarded(name: str, do: Any, folder: Path) -> Any:
        before = len(seen)
        given = do()
        seen[before:] = [f"{name.removeprefix('export ').partition(',')[0]} {each}" for each in seen[before:]]
        return given

    monkeypatch.setattr(dry_run, "check", check)
    monkeypatch.setattr(steady, "check_in_process", lambda candidate, inputs, name: None)
    monkeypatch.setattr(dry_run_step, "guarded", guarded)
    what = recipe(
        model={"python": "own_nets:own"},
        data={"digits": {"size": 32}},
        stages=[{"train": {"epochs": 1}}, *stages],
        export=["onnx"],
        budgets=None,
    )
    dry_run_step.check(at_work(what, load_device("host"), Store("store")))
    assert seen == tried


def test_a_teachers_file_is_held_against_the_torch_teacher(
    work: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = numpy.eye(10, dtype="float32")[work.data.test.targets.numpy()]
    monkeypatch.setattr(work, "file", lambda id: (artifact("onnx", "teacher"), tmp_path / "teacher.onnx"))
    monkeypatch.setattr(work, "why_not_run", lambda format: "")
    step = Step(id=StepId("evaluation", "teacher", "onnx"), key="", ingredients={})
    for answers, taught in (((right,), (right,)), ((right[::-1],), (right,))):
        work.teacher_outputs = taught
        monkeypatch.setattr(evaluate, "outputs", lambda *_, answers=answers, **__: answers)
        if answers[0] is taught[0]:
            assert evaluation.do(work, step, tmp_path).scores["accuracy"] == 1
            continue
        with pytest.raises(StageError, match=r"the onnx file of the teacher decides .* test samples differently"):
            evaluation.do(work, step, tmp_path)


@pytest.mark.parametrize(
    "stages",
    [
        [{"train": {"epochs": 1, "precision": "bf16"}}],
        [{"train": {"epochs": 1}}, {"prune": {"ratio": "50 %", "recover": {"precision": "bf16"}}}],
    ],
    ids=["of a training", "of a recovery"],
)
def test_bf16_where_the_processor_has_none_ends_before_any_training(
    stages: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepack.compress.training.numerics.cpu_features", lambda: frozenset({"avx2", "avx512_vnni"}))
    small = {"torchvision": "resnet18", "width": "15 %"}
    work = at_work(recipe(model=small, stages=stages), load_device("host"), Store("store"))
    (name,) = [*stages[-1]]
    with pytest.raises(StageError, match=rf"{name}: this processor has no bf16 instructions"):
        dry_run_step.check(work)


NUMBERS = """
import torch
from torch import nn

def load():
    def part(start):
        numbers = torch.arange(start, start + 16)
        return (numbers[:, None] + torch.arange(4)) % 50, numbers % 2

    return {name: part(at) for name, at in (("train", 0), ("validation", 100), ("test", 200))}

def make():
    return nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(16, 2))
"""


@pytest.mark.parametrize("stage", ["train", "prune"])
def test_numbers_of_tokens_are_not_mixed_which_is_told_before_any_training(stage: str) -> None:
    Path("own_numbers.py").write_text(NUMBERS)
    data = {"python": {"function": "own_numbers:load", "shape": [4], "labels": ["a", "b"], "dtype": "int64"}}
    mixed = {"train": {"epochs": 1, "mixup": 0.2}}
    cut = {"prune": {"ratio": "50 %", "recover": {"mixup": 0.2}}}
    stages = [mixed] if stage == "train" else [{"train": {"epochs": 1}}, cut]
    what = recipe(model={"python": "own_numbers:make"}, data=data, stages=stages)
    with pytest.raises(StageError, match=f"{stage}: numbers of tokens cannot be mixed"):
        dry_run_step.check(at_work(what, load_device("host"), Store("store")))


def test_notes_on_the_data_stand_in_the_ledger() -> None:
    write_folder("pets")
    Path("pets/ant/1.jpg").write_text("no picture")
    data = {"image_folder": {"folder": "pets", "size": 32, "bad_samples": {"skip": 3}}}
    small = {"torchvision": "resnet18", "width": "15 %"}
    work = at_work(recipe(model=small, data=data), load_device("host"), Store("store"))
    runner = Runner(work.recipe, work.session, work.store, work.planner)
    runner.dry_run_is_due = False
    made = CandidateOutcome.read(runner.ensure(next(work.planner.steps())))
    assert any(note.startswith("1 of 30 pictures cannot be read, and are left out") for note in made.notes)


def test_a_recipe_that_asks_int8_to_be_trained_in_bf16_is_refused_at_check() -> None:
    with pytest.raises(ConfigError, match=r"at stages.1..quantize.precision\n.*precision must be fp32 here, got bf16"):
        recipe(stages=[{"train": {"epochs": 1}}, {"quantize": {"precision": "bf16"}}])


def test_samples_of_a_bundle_have_the_outputs_that_were_kept(tmp_path: Path) -> None:
    work = at_work(recipe(), load_device("host"), Store(Path("store")))
    evaluate.save((numpy.eye(2, dtype="float32"),), tmp_path)
    entry = cast(Entry, SimpleNamespace(path=tmp_path))
    assert evaluation.cases(work, entry) == ({"logits": (1.0, 0.0)}, {"logits": (0.0, 1.0)})


def test_outputs_that_are_not_finite_are_not_drawn() -> None:
    """They end the build with where they begin, not with what JSON cannot hold."""
    work = at_work(recipe(), load_device("host"), Store(Path("store")))
    classes = len(work.signature.labels)
    assert len(evaluation._shown(work, (numpy.eye(classes, dtype="float32"),))) == 3
    for wrong in (numpy.nan, numpy.inf):
        assert evaluation._shown(work, (numpy.array([[wrong] * classes]),)) == ()


def test_a_task_is_tried_on_samples_of_which_few_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.data.splits._LARGEST", 1)
    split = tiny.data().validation.first(3)
    assert split.at_once == 1
    candidate_step._check_task(cast(Any, SimpleNamespace(task=tiny.task())), tiny.candidate("mlp"), split)
