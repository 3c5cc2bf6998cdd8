"""A test that hangs ends, fails and is named, with what it started: else `make test` would never come back."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from factories import PROJECT

# Each file has a test that hangs between two that do not.
HANGS = {
    "python": "import time; time.sleep(500)",
    "process": "import subprocess\n    with subprocess.Popen([SLEEP, '500']): pass",
    "left": "import subprocess, time; subprocess.Popen([SLEEP, '500'], start_new_session=True); time.sleep(500)",
}
HARD = {
    "library": "import itertools, subprocess; subprocess.Popen([SLEEP, '500']); sum(itertools.repeat(0))",
    "deaf": """import time
    while True:
        try: time.sleep(500)
        except BaseException: pass""",
}


def ran(folder: Path, hangs: dict[str, str], last: int, *options: str) -> "subprocess.CompletedProcess[str]":
    """pytest, with the plugin and the options of `make test`, on these files; a process ends after `last` seconds."""
    sleep = folder / "sleep-of-a-test"
    sleep.symlink_to("/bin/sleep")
    for name, body in hangs.items():
        text = (
            f"SLEEP = {str(sleep)!r}\ndef test_before(): pass\ndef test_{name}():\n    {body}\ndef test_after(): pass\n"
        )
        (folder / f"test_{name}.py").write_text(text)
    limits = ["timeout=2", "timeout_method=signal", f"faulthandler_timeout={last}", "faulthandler_exit_on_timeout=true"]
    plugins = ["--disable-plugin-autoload", "-pxdist", "-ptimeout", "-plimits"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *options, *(f"-o{each}" for each in limits)]
    path = os.pathsep.join([str(PROJECT / "tests" / "support"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [*command, f"--rootdir={folder}", str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def left(folder: Path) -> list[str]:
    """Processes of the tests that still run after a while, in which they may be ended."""
    end = time.monotonic() + 60
    while (found := _running(folder)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def _running(folder: Path) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder) in file.read_text():
                found.append(file.read_text())
        except OSError:
            continue
    return found


OPTIONS = re.search(r"pytest (-n auto .*)", (PROJECT / "Makefile").read_text())
assert OPTIONS
AS_MAKE_TEST = OPTIONS[1].replace("auto", "2").split()


@pytest.mark.parametrize("options", [(), AS_MAKE_TEST], ids=["one process", "as make test"])
def test_a_test_past_its_limit_fails_by_name_and_all_others_run(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = ran(tmp_path, HANGS, 60, *options)  # on a busy machine an error takes seconds to arrive
    assert done.returncode == 1, done.stdout + done.stderr
    for name in HANGS:
        assert f"FAILED test_{name}.py::test_{name} - Failed: Timeout" in done.stdout
    assert "3 failed, 6 passed" in done.stdout
    assert left(tmp_path) == []


@pytest.mark.parametrize("name", HARD)
def test_what_heeds_no_limit_ends_the_session_and_is_named(tmp_path: Path, name: str) -> None:
    done = ran(tmp_path, {name: HARD[name]}, 5, *AS_MAKE_TEST)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"crashed while running 'test_{name}.py::test_{name}'" in done.stdout
    assert f"in test_{name}" in done.stderr  # where it stood
    assert left(tmp_path) == []
