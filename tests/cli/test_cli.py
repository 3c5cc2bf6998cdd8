"""Exit codes: what CI reads. A crash is never mistaken for a failed budget, and nothing ends in a traceback."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from factories import PROJECT, build, edgepack, python, recipe_file

from edgepack.config.recipe import Recipe
from edgepack.core.errors import DeviceError, ExitCode, RecipeError, StageError, VerifyError

MAIN = "from edgepack.cli.main import main; main()"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("check", "--frobnicate"),
        ("check", "--device"),
        ("check", "nothing.yaml"),
        ("plan", "nothing"),
        ("build", "nothing.yaml"),
        ("build", "--device", "nowhere"),
        ("explain", "nothing"),
        ("explain",),
        ("verify",),
        ("verify", "nothing.zip"),
        ("schema", "stage"),
        ("cache",),
        ("cache", "gc", "--max-size", "5"),
        ("cache", "gc", "--unused-days", "many"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_and_says_why(arguments: tuple[str, ...]) -> None:
    ran = edgepack(*arguments)
    assert ran.code == ExitCode.USAGE
    assert ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("--version",), ("check",), ("stages",), ("devices",)])
def test_what_went_well_exits_0_and_keeps_stderr_clean(arguments: tuple[str, ...]) -> None:
    ran = edgepack(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out


def _fails_with(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RecipeError("the recipe is wrong", "mend it"), 2, "the recipe is wrong\n  mend it\n"),
        (DeviceError("no such device"), 4, "no such device\n"),
        (StageError("prune failed"), 5, "prune failed\n"),
        (VerifyError("changed"), 1, "changed\n"),
        (KeyboardInterrupt(), 130, "interrupted; finished steps are cached, run the same command to continue\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_failure_has_its_exit_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepack.config.recipe_reading.load_recipe", _fails_with(error))
    ran = edgepack("check", "quickstart")
    assert (ran.code, ran.out, ran.err.lstrip()) == (code, "", said)


def test_a_bug_exits_70_and_leaves_a_log_to_report(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "edgepack.config.recipe_reading.load_recipe", _fails_with(ZeroDivisionError("division by zero"))
    )
    ran = edgepack("check", "quickstart")
    assert ran.code == ExitCode.BUG
    assert "this is a bug in edgepack: ZeroDivisionError: division by zero" in ran.err
    assert "Traceback" not in ran.err
    (log,) = own_place.glob("edgepack-*.log")
    assert "Traceback" in log.read_text()
    assert log.name in ran.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_exits_130(number: signal.Signals) -> None:
    code = (
        "import os, signal, edgepack.config.recipe_reading as r; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # a shell's background job ignores it
        f"r.load_recipe = lambda *a, **k: os.kill(os.getpid(), {int(number)}); {MAIN}"
    )
    ran = python(code, "check", "quickstart")
    assert ran.code == ExitCode.INTERRUPTED
    assert ran.err.lstrip().startswith("interrupted; finished steps are cached")
    assert "Traceback" not in ran.err


def _with_closed_output(code: str, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command whose reader went away, as in `edgepack ... | head`."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ran:
        assert ran.stdout is not None
        assert ran.stderr is not None
        try:
            ran.stdout.close()
            return ran.wait(120), ran.stderr.read()
        finally:
            ran.kill()  # else leaving the block would wait for what hangs


def test_a_closed_pipe_is_no_failure() -> None:
    code, err = _with_closed_output(MAIN, "stages")
    assert (code, err) == (0, "")


def test_a_build_that_nobody_watches_any_more_keeps_its_verdict() -> None:
    """It goes on to its verdict (3 here), or stops with an error that CI may retry; it never claims 0 or 1."""
    build_quietly = f"""
import sys; sys.path[:0] = [{str(PROJECT / "tests/support")!r}, {str(PROJECT)!r}]
import factories, edgepack.workflows.build.pipeline as pipeline, edgepack.core.events as events
def instead(recipe, *arguments, emit, **options):
    for _ in range(10_000):
        emit(events.BuildStarted(recipe=recipe.name, device="the board"))
    return factories.build(exit_code=3)
pipeline.build = instead
{MAIN}"""
    code, err = _with_closed_output(build_quietly, "build", str(recipe_file()))
    assert code in (ExitCode.INCONCLUSIVE, ExitCode.DEVICE), err
    assert "Traceback" not in err


INSTEAD = {
    "gate": "import edgepack.workflows.rejudge as m; m.rejudge = lambda *_, **__: factories.build(exit_code=1)",
    "bench": "import edgepack.workflows.bench as m; m.bench = lambda *_, **__: found",
    "compare": "",
    "selftest": "import edgepack.workflows.selftest as m; m.run = samples",
}
ARGUMENTS = {"gate": ("kept",), "bench": ("a.onnx",), "compare": ("kept", "other"), "selftest": ("kept",)}


@pytest.mark.parametrize(("command", "wanted"), [("gate", 1), ("bench", 1), ("compare", 3), ("selftest", 5)])
def test_what_nobody_reads_to_its_end_keeps_its_exit_code(command: str, wanted: int) -> None:
    """As in `set -o pipefail; edgepack gate x | head -1`: what rich and click make of a closed pipe is no verdict."""
    build().save(_folder("kept") / "build.json")
    build(measurements=()).save(_folder("other") / "build.json")
    instead = f"""
import sys; sys.path[:0] = [{str(PROJECT / "tests/support")!r}, {str(PROJECT)!r}]
import factories, types, edgepack.core.errors as errors, edgepack.workflows.selftest as selftest
from edgepack.workflows.bench import Bench
missed = factories.measurement("latency.p50", 9.0, environment={{"versions": {{}}}})
found = Bench(file="a.onnx", device="host", measurements=(missed,), verdicts=(factories.verdict("size", 9e9),))
def samples(*_, **__):
    for i in range(10_000):  # more than a pipe holds, and the last one differs
        yield selftest.Answer(
            file="a.onnx",
            outputs="logits",
            sample=str(i),
            label="a",
            expected="a",
            agreement=1.0,
            least=1.0,
            distance=0.0,
            allowed=0.1,
        )
    raise errors.SelftestError("another answer")
{INSTEAD[command]}
{MAIN}"""
    code, err = _with_closed_output(instead, command, *ARGUMENTS[command])
    assert code == wanted, err
    assert "Traceback" not in err and "bug" not in err


@pytest.mark.parametrize("arguments", [("stages",), ("--version",), ("check", "quickstart"), ("gate", "kept")])
def test_an_output_without_space_is_told(arguments: tuple[str, ...]) -> None:
    """However little it is: what is said last waits for the end of the program to be written."""
    build(exit_code=0).save(_folder("kept") / "build.json")
    code, err = _with_full_output(MAIN, *arguments)
    assert code == 4 and err.count("no space left on the disk") == 1 and "Traceback" not in err
    assert "write the output to another disk" in err.splitlines()[-1]


@pytest.mark.parametrize(("verdict", "wanted", "more"), [(0, 4, ()), (3, 4, ("--json",)), (1, 1, ("--json",))])
def test_a_build_whose_output_has_no_space_goes_on_to_its_verdict(
    verdict: int, wanted: int, more: tuple[str, ...]
) -> None:
    instead = f"""
import sys; sys.path[:0] = [{str(PROJECT / "tests/support")!r}, {str(PROJECT)!r}]
import factories, edgepack.workflows.build.pipeline as pipeline, edgepack.core.events as events
def instead(recipe, *arguments, emit, **options):
    for _ in range(10_000):
        emit(events.BuildStarted(recipe=recipe.name, device="the board"))
    return factories.build(exit_code={verdict})
pipeline.build = instead
{MAIN}"""
    code, err = _with_full_output(instead, "build", str(recipe_file()), *more)
    assert code == wanted and err.count("no space left on the disk") == 1


def test_an_error_stream_without_space_changes_no_exit_code() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", MAIN]
        codes = [
            subprocess.run([*command, "check", name], stdout=subprocess.PIPE, stderr=full, timeout=120).returncode
            for name in ("quickstart", "nothing")
        ]
    assert codes == [0, 2]


def _with_full_output(code: str, *arguments: str) -> tuple[int, str]:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    return done.returncode, done.stderr


def test_memory_that_runs_out_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.config.recipe_reading.load_recipe", _fails_with(MemoryError()))
    ran = edgepack("check", "quickstart")
    assert ran.code == ExitCode.DEVICE and "out of memory" in ran.err


def test_what_is_called_like_a_recipe_or_build_hides_neither() -> None:
    for name in ("pets", "tool"):
        recipe_file(name).rename(Path("recipes", f"{name}.yaml"))
        build(recipe={"name": name}).save(_folder(f"dist/{name}") / "build.json")
    Path("pets").mkdir()
    Path("tool").write_bytes(b"\x7fELF")
    for name in ("pets", "tool"):
        assert edgepack("check", name).out.startswith(f"{name}: OK")
        assert edgepack("check", f"./{name}").code == 2
        assert edgepack("gate", name).code == edgepack("explain", name).code == 0
    assert "recipes/pets.yaml is for the device" in edgepack("gate", "pets", "--recipe", "pets").err


@pytest.mark.parametrize("micro", ["\N{MICRO SIGN}", "\N{GREEK SMALL LETTER MU}"])
@pytest.mark.parametrize("utf8", [True, False])
def test_a_micro_sign_is_read_however_it_was_typed(micro: str, utf8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that knows no UTF-8 gives the bytes of it one by one."""
    value = f"250 {micro}s" if utf8 else f"250 {micro}s".encode().decode("ascii", "surrogateescape")
    assert edgepack("check", str(recipe_file()), "--set", f"budgets.latency.p50={value}").code == 0
    ran = edgepack("check", str(recipe_file()), "--set", f"budgets.latency.p50={value.replace('s', 'x')}")
    assert "unknown unit" in ran.err


def test_an_output_that_was_closed_from_the_start_changes_no_exit_code() -> None:
    closed = f"import sys; sys.stdout = sys.stderr = None; {MAIN}"
    assert [python(closed, *words).code for words in (("stages",), ("check", "nothing"))] == [0, 2]


def _folder(name: str) -> Path:
    Path(name).mkdir(parents=True)
    return Path(name)


def test_what_ends_the_program_by_itself_is_a_bug_and_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaves(*_: Any) -> None:
        raise SystemExit(0)

    monkeypatch.setattr("edgepack.workflows.doctor.checks", leaves)
    assert edgepack("doctor").code == ExitCode.BUG


def test_the_module_runs_as_the_command() -> None:
    code = (
        "import runpy, sys; sys.argv = ['edgepack', *sys.argv[1:]]; runpy.run_module('edgepack', run_name='__main__')"
    )
    ran = python(code, "--version")
    assert (ran.code, ran.out) == (0, "edgepack, version 0.1.0\n")


def _builds(monkeypatch: pytest.MonkeyPatch, outcomes: dict[str, Any]) -> list[str]:
    """`build` gives these exit codes, or fails so, instead of building; the list says what was asked for."""
    asked: list[str] = []

    def instead(recipe: Recipe, *arguments: Any, **options: Any) -> Any:
        asked.append(recipe.name)
        outcome = outcomes[recipe.name]
        if isinstance(outcome, BaseException):
            raise outcome
        return build(exit_code=outcome, recipe={"name": recipe.name})

    monkeypatch.setattr("edgepack.workflows.build.pipeline.build", instead)
    return asked


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_verdict_of_a_build_is_its_exit_code(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _builds(monkeypatch, {"tiny": code})
    assert edgepack("build", str(recipe_file())).code == code


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ({"a": 0, "b": 0}, 0),
        ({"a": 1, "b": 0}, 1),
        ({"a": 3, "b": 1}, 1),
        ({"a": DeviceError("gone"), "b": 0}, 4),
        ({"a": DeviceError("gone"), "b": 1}, 1),
        ({"a": StageError("prune failed"), "b": 1}, 5),
    ],
)
def test_of_several_builds_the_most_decisive_code_wins_and_none_stops_the_next(
    outcomes: dict[str, Any], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _builds(monkeypatch, outcomes)
    ran = edgepack("build", *(str(recipe_file(name)) for name in outcomes))
    assert ran.code == code
    assert asked == [*outcomes]
    assert all(f"{name}: {error}" in ran.err for name, error in outcomes.items() if isinstance(error, Exception))


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (ZeroDivisionError("x"), 70)])
def test_an_interruption_or_a_bug_ends_everything(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _builds(monkeypatch, {"a": error, "b": 0})
    assert edgepack("build", str(recipe_file("a")), str(recipe_file("b"))).code == code
    assert asked == ["a"]


def test_nothing_is_built_when_one_of_several_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _builds(monkeypatch, {"a": 0, "b": 0})
    assert edgepack("build", str(recipe_file("a")), str(recipe_file("b", seed="x"))).code == ExitCode.USAGE
    assert asked == []


def test_nothing_is_built_when_the_device_of_one_of_several_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _builds(monkeypatch, {"a": 0, "b": 0})
    Path("devices/broken.yaml").write_text("edgepack: 1\n")
    ran = edgepack("build", str(recipe_file("a")), str(recipe_file("b", device="broken")))
    assert ran.code == ExitCode.USAGE
    assert asked == []


def test_without_a_recipe_all_of_a_device_are_built(monkeypatch: pytest.MonkeyPatch, own_place: Path) -> None:
    for file in (own_place / "recipes").glob("*.yaml"):
        file.unlink()
    (own_place / "devices" / "board.yaml").write_text("edgepack: 1\nname: board\nrunner: host\n")
    for name, where in (("a", "host"), ("b", "board"), ("c", "host")):
        recipe_file(name, device=where)
    asked = _builds(monkeypatch, dict.fromkeys("abc", 0))
    assert edgepack("build", "--device", "host").code == 0
    assert edgepack("build").code == 0
    assert asked == ["a", "c", "a", "b", "c"]


def test_json_output_is_json_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    _builds(monkeypatch, {"tiny": 1})
    ran = edgepack("build", str(recipe_file()), "--json")
    assert ran.code == 1
    assert [json.loads(line) for line in ran.out.splitlines()] == []


def test_options_can_come_from_the_environment(own_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_STORE", str(own_place / "elsewhere"))
    assert edgepack("cache", "ls").out.endswith(f"in {own_place / 'elsewhere'}\n")


def test_explain_takes_a_folder_and_no_other_build_of_its_name(own_place: Path) -> None:
    saved = build()
    for folder in ("dist", "elsewhere"):
        Path(folder, "tiny").mkdir(parents=True, exist_ok=True)
        saved.save(Path(folder, "tiny", "build.json"))
    assert edgepack("explain", "elsewhere/tiny").code == edgepack("explain", "tiny").code == 0
    ran = edgepack("explain", "nowhere/tiny")
    assert ran.code == ExitCode.USAGE and "there is no build 'nowhere/tiny'" in ran.err


def test_explain_finds_a_recipe_whose_name_is_not_that_of_its_file(own_place: Path) -> None:
    path = recipe_file("file", name="product")
    (own_place / "dist" / "product").mkdir(parents=True)
    build(recipe={"name": "product"}).save(own_place / "dist" / "product" / "build.json")
    assert edgepack("explain", str(path)).code == 0


def test_doctor_names_what_is_wrong_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepack.workflows.doctor import Finding

    findings = [Finding(True, "all well"), Finding(False, "too old", "install a newer one")]
    monkeypatch.setattr("edgepack.workflows.doctor.checks", lambda store, dist: iter(findings))
    ran = edgepack("doctor")
    assert ran.code == ExitCode.DEVICE
    assert ran.out == "ok   all well\nBAD  too old\n     install a newer one\n"
    monkeypatch.setattr("edgepack.workflows.doctor.checks", lambda store, dist: iter(findings[:1]))
    assert edgepack("doctor").code == ExitCode.OK
