"""Print GitHub Actions annotations at the recipe lines of missed budgets, and write the step summary.

Makes no file in dist/. Source of the format: GitHub Docs, Workflow commands for GitHub Actions.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from edgepack.config.document import ConfigError
from edgepack.core.errors import EdgepackError, RecipeError
from edgepack.deliver import wording
from edgepack.deliver.reports import markdown, sarif
from edgepack.records.build import Build

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


def tell(build: Build, stream: TextIO, environment: Mapping[str, str] = os.environ) -> None:
    """Write annotations to the stream and the summary to its file in a job of GitHub Actions; else do nothing."""
    if environment.get("GITHUB_ACTIONS") != "true":
        return
    root = environment.get("GITHUB_WORKSPACE", "")
    for line in annotations(build, root):
        stream.write(f"{line}\n")
    stream.flush()
    if file := environment.get("GITHUB_STEP_SUMMARY"):
        with Path(file).open("a", encoding="utf-8") as summary:
            summary.write(f"{markdown.summary(build)}\n")


def tell_failure(error: EdgepackError, stream: TextIO, folder: Path | None = None) -> None:
    """Annotate a command that ended in an error: each mistake at its line.

    If this error ended the build in `folder`, the summary shows what was done before.
    """
    if folder and (failed := _ended_by(error, folder)):
        tell(failed, stream)
        return
    root = os.environ.get("GITHUB_WORKSPACE", "")
    if isinstance(error, ConfigError):
        for problem in error.problems:
            title = f"at {problem.path}" if problem.path else "edgepack"
            stream.write(f"{_command('error', problem.file, problem.line, title, problem.message, root)}\n")
    else:
        stream.write(f"::error title=edgepack::{_text(str(error))}\n")
    stream.flush()


def _ended_by(error: EdgepackError, folder: Path) -> Build | None:
    try:
        build = Build.read(folder / "build.json")
    except RecipeError:
        return None
    return build if build.error == str(error) else None


def annotations(build: Build, root: str = "") -> Iterator[str]:
    """Yield one workflow command for the failure of the build, and one for each budget that did not pass.

    File names are relative to `root`, the folder of the checkout; without `root` they stay as in the build.
    """
    if build.error:
        title = f"{build.name}: {wording.headline(build)}"
        yield _command("error", *sarif.located(build, build.recipe_file), title, build.error, root)
    for verdict in build.verdicts:
        if verdict.outcome != "pass":
            title = f"{verdict.budget} of {verdict.artifact}: {wording.mark(verdict)}"
            name = _COMMANDS[wording.severity(verdict)]
            yield _command(name, *sarif.located(build, verdict.place), title, wording.sentence(verdict), root)


def _command(name: str, file: str, line: int, title: str, text: str, root: str) -> str:
    facts = {"file": _from(root, file), "line": str(max(1, line))} if not file.startswith("--") else {}
    facts["title"] = wording.one_line(title)
    return f"::{name} {','.join(f'{key}={_value(fact)}' for key, fact in facts.items())}::{_text(text)}"


def _from(root: str, file: str) -> str:
    """Return the path relative to the root if the file lies below it."""
    if not root:
        return file
    whole = (Path.cwd() / file).resolve()
    return whole.relative_to(Path(root).resolve()).as_posix() if whole.is_relative_to(Path(root).resolve()) else file


def _text(text: str) -> str:
    return wording.printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _value(text: str) -> str:
    return _text(text).replace(":", "%3A").replace(",", "%2C")
