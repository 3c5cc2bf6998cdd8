"""junit.xml: one test case a budget and file, for the test tab of a CI server."""

from edgepack.errors import ExitCode
from edgepack.gate import Verdict
from edgepack.reports import _words as words
from edgepack.result import Build

FILE = "junit.xml"


def render(build: Build) -> str:
    from junitparser import JUnitXml, TestSuite

    suite = TestSuite(f"edgepack.{build.name}")
    suite.add_property("device", build.device["name"])
    for verdict in build.verdicts:
        suite.add_testcase(_case(build, verdict))
    document = JUnitXml()
    document.add_testsuite(suite)
    text: str = document.tostring().decode()
    return text


def _case(build: Build, verdict: Verdict) -> "object":
    from junitparser import Error, Failure, Skipped, TestCase

    case = TestCase(f"{verdict.budget} of {verdict.artifact}", classname=f"{build.name}.{build.device['id']}")
    value = words.figure(verdict.metric, verdict.value)
    line = f"{value}, {words.limit(verdict)}: {words.headroom(verdict)} ({verdict.place})"
    if verdict.outcome == "fail" and verdict.reason:
        line = f"{line}: {verdict.reason}"
    if verdict.outcome == "waived":
        case.result = [Skipped(line)]
    elif verdict.code == ExitCode.BUDGET:
        case.result = [Failure(line, "budget")]
    elif verdict.code != ExitCode.OK:
        case.result = [Error(line, verdict.outcome)]
    else:
        case.system_out = line
    return case
