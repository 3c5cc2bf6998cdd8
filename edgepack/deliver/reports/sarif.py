"""Render report.sarif: missed budgets at their lines in the recipe, for code scanning.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) 2.1.0 Plus Errata 01, 2023. Code scanning refuses a
result without a place, and takes any result for an alert: what passes is left out. Places are from the root of the
repository, wherever in it the build ran.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import PurePath
from posixpath import normpath
from typing import Any
from urllib.parse import quote

from edgepack.core.errors import ExitCode
from edgepack.core.metrics import METRICS
from edgepack.deliver import wording
from edgepack.records.build import Build
from edgepack.records.verdict import Verdict

FILE = "report.sarif"

_JUDGED = (ExitCode.OK, ExitCode.BUDGET, ExitCode.INCONCLUSIVE)


def render(build: Build) -> str:
    log = {
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [_run(build)],
    }
    return json.dumps(log, indent=1, ensure_ascii=False) + "\n"


def _run(build: Build) -> dict[str, Any]:
    results = [*_failure(build), *(_result(build, each) for each in build.verdicts if each.outcome != "pass")]
    rules = [_rule(id) for id in dict.fromkeys(result["ruleId"] for result in results)]
    driver = {"name": "edgepack", **_version(build), "rules": rules}
    return {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"edgepack/{wording.one_line(build.name)}/"},
        "invocations": [_invocation(build)],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }


def _version(build: Build) -> dict[str, str]:
    version = build.provenance.get("versions", {}).get("edgepack", "")
    return {"semanticVersion": version} if version else {}


def _invocation(build: Build) -> dict[str, Any]:
    known: dict[str, Any] = {"executionSuccessful": build.exit_code in _JUDGED, "startTimeUtc": _utc(build.started_at)}
    if build.finished_at is not None:
        known["endTimeUtc"] = _utc(build.finished_at)
    if build.exit_code is not None:
        known |= {"exitCode": build.exit_code, "exitCodeDescription": wording.headline(build)}
    return known


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _rule(id: str) -> dict[str, Any]:
    """Return how code scanning describes a kind of result. `latency.p50` is described by its metric."""
    name = id.removeprefix("edgepack/")
    metric = next((known for known in (name, name.rpartition(".")[0]) if known in METRICS), "")
    short = f"Budget on {name}: {METRICS[metric].meaning}" if metric else f"Budget on {name}"
    if id == "edgepack/build":
        short = "The build finished"
    return {"id": id, "shortDescription": {"text": short}}


def _failure(build: Build) -> Iterator[dict[str, Any]]:
    """Yield the result of a build that ended before its verdict."""
    if build.error:
        text = f"{build.name}: {wording.headline(build)}: {build.error}"
        yield _shown(build, "edgepack/build", "error", text, build.recipe_file, "build")


def _result(build: Build, verdict: Verdict) -> dict[str, Any]:
    text = f"{verdict.budget} of {verdict.artifact}: {wording.mark(verdict)}: {wording.sentence(verdict)}"
    subject = f"{verdict.budget}/{verdict.artifact}"
    result = _shown(build, f"edgepack/{verdict.budget}", wording.severity(verdict), text, verdict.place, subject)
    if verdict.outcome == "waived":
        result["suppressions"] = [{"kind": "external", "justification": wording.printable(verdict.reason)}]
    return result


def _shown(build: Build, rule: str, level: str, text: str, place: str, subject: str) -> dict[str, Any]:
    return {
        "ruleId": rule,
        "level": level,
        "message": {"text": wording.printable(text)},
        "locations": [{"physicalLocation": _location(build, place)}],
        "partialFingerprints": {"edgepack/v1": wording.one_line(f"{build.name}/{build.device['id']}/{subject}")},
    }


def _location(build: Build, place: str) -> dict[str, Any]:
    file, line = located(build, place)
    uri = PurePath(file).as_uri() if PurePath(file).is_absolute() else quote(_from_the_root(build, file))
    return {"artifactLocation": {"uri": uri}, "region": {"startLine": line}}


def _from_the_root(build: Build, file: str) -> str:
    """Return a file name relative to the repository root; files outside of it keep their name."""
    whole = normpath(f"{wording.one_line(build.provenance.get('git', {}).get('prefix', ''))}{file}")
    return file if whole.startswith("../") else whole


def located(build: Build, place: str) -> tuple[str, int]:
    """Return file and line of "recipes/x.yaml:31"; for a command-line option, the recipe's first line."""
    file, _, line = place.rpartition(":")
    if file and line.isdecimal():
        return wording.one_line(file), max(1, int(line))
    if place and not place.startswith("--"):
        return wording.one_line(place), 1
    return wording.one_line(build.recipe_file or f"recipes/{build.name}.yaml"), 1
