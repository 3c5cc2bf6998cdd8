"""How long the commands take that run nothing of a model, as a release or an editor waits for them.

    make quickstart                     first: they are timed on what it leaves in dist/ and in the cache
    python benchmarks/commands.py       writes benchmarks/commands.md; nothing else may run meanwhile

Every run is a whole process, from its start to its exit, with all files in the page cache. They run on a copy of the
build, so that neither it nor its history changes.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgepack.core import provenance
from edgepack.core.units import DURATION

_PAGE = Path(__file__).with_suffix(".md")
_BUILT = Path("dist/quickstart")
_RUNS = 11
_VERDICTS = (0, 1, 3)  # the command did its work, whatever the verdicts
_HEAD = f"""# How long commands take

On the build of `recipes/quickstart.yaml`, each a fresh process: the median of {_RUNS} runs after one that is not
counted.

| command | median | lowest and highest | limit | |
|---|---|---|---|---|
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command for a folder with the build in `dist/`, and the limit of its median in seconds, if there is one."""

    words: str
    limit: float | None = None


_COMMANDS = (
    Command(words="gate quickstart", limit=0.35),
    Command(words="compare quickstart quickstart", limit=0.5),
    Command(words="verify {dist}/quickstart/quickstart.zip", limit=0.5),
    Command(words="check quickstart", limit=0.3),
    Command(words="plan quickstart"),
    Command(words="build quickstart", limit=0.6),
    Command(words="--help", limit=0.15),
)


def main() -> None:
    if not (_BUILT / "build.json").is_file() or "up to date" not in _run("plan quickstart", Path("dist")):
        sys.exit(f"there is no {_BUILT} that is up to date: `make quickstart` first")
    with TemporaryDirectory() as folder:
        shutil.copytree(_BUILT, Path(folder) / "quickstart")
        rows = [_row(command, _seconds(command, Path(folder))) for command in _COMMANDS]
    python = provenance.environment()["python"]
    environment = f"{provenance.summary('edgepack', 'pydantic', 'rich')}, Python {python}"
    footer = f"\n\nCommand: `python benchmarks/commands.py`\n\nEnvironment: {environment}.\n"
    _PAGE.write_text(_HEAD + "\n".join(rows) + footer)


def _run(words: str, dist: Path) -> str:
    """Return what the command prints. Exits if it did not do its work."""
    # With PYTHONDONTWRITEBYTECODE every run would compile edgepack's modules again.
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, "EDGEPACK_DIST": str(dist), "EDGEPACK_HISTORY": str(dist / "history.jsonl")}
    command = [sys.executable, "-m", "edgepack", *words.format(dist=dist).split()]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ran.returncode not in _VERDICTS:
        sys.exit(f"edgepack {words} ended with {ran.returncode}\n{ran.stderr}")
    return ran.stdout


def _seconds(command: Command, dist: Path) -> list[float]:
    taken = []
    for _ in range(_RUNS + 1):
        started = time.perf_counter()
        _run(command.words, dist)
        taken.append(time.perf_counter() - started)
    return taken[1:]


def _row(command: Command, taken: list[float]) -> str:
    median = statistics.median(taken)
    limit, verdict = "", ""
    if command.limit is not None:
        limit, verdict = _shown(command.limit), "met" if median <= command.limit else "not met"
    spread = f"{_shown(min(taken))}, {_shown(max(taken))}"
    words = command.words.format(dist="dist")
    return f"| `edgepack {words}` | {_shown(median)} | {spread} | {limit} | {verdict} |"


def _shown(seconds: float) -> str:
    return DURATION.format(seconds * 1000)


if __name__ == "__main__":
    main()
