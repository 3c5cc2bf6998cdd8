"""Render junit.xml: one test case per budget and file, and one for the build, for the test tab of CI.

A budget that failed is a failure; what could not be judged is an error; what does not decide the exit code (waived, or
of the level warn or info) is skipped, with its figure in the message.
"""

from typing import TYPE_CHECKING

from edgepack.core.errors import ExitCode
from edgepack.deliver import wording
from edgepack.records.build import Build
from edgepack.records.verdict import Verdict

if TYPE_CHECKING:
    from junitparser import TestCase

FILE = "junit.xml"


def render(build: Build) -> str:
    from junitparser import JUnitXml, TestSuite

    suite = TestSuite(wording.printable(f"edgepack.{build.name}"))
    suite.add_property("device", wording.printable(build.device["name"]))
    suite.add_property("exit_code", str(build.exit_code))
    for warning in wording.warnings(build):
        suite.add_property("warning", wording.printable(warning))
    suite.add_testcase(_whole(build))
    for verdict in build.verdicts:
        suite.add_testcase(_case(build, verdict))
    document = JUnitXml()
    document.add_testsuite(suite)
    text: str = document.tostring().decode()
    return text


def _whole(build: Build) -> "TestCase":
    """Return a test case for the build itself: CI servers take a file without test cases for a mistake."""
    from junitparser import Error

    case = _named(build, "the build")
    if build.error:
        case.result = [Error(wording.printable(build.error), wording.headline(build))]
    elif build.finished_at is not None:
        case.time = round(build.finished_at - build.started_at, 3)
    return case


def _case(build: Build, verdict: Verdict) -> "TestCase":
    from junitparser import Error, Failure, Skipped

    case = _named(build, f"{verdict.budget} of {verdict.artifact}")
    line = wording.printable(f"{wording.sentence(verdict)} ({verdict.place})")
    if verdict.outcome == "pass":
        case.system_out = line
    elif wording.severity(verdict) != "error":
        case.result = [Skipped(f"{wording.mark(verdict)}: {line}")]
    elif verdict.outcome == "fail" or verdict.code == ExitCode.BUDGET:
        case.result = [Failure(line, "budget")]
    else:
        case.result = [Error(line, verdict.outcome)]
    return case


def _named(build: Build, name: str) -> "TestCase":
    from junitparser import TestCase

    return TestCase(wording.printable(name), classname=wording.printable(f"{build.name}.{build.device['id']}"))
