"""How much memory a process may use: of its control groups, and of its own limits."""

import resource
from pathlib import Path

import pytest
from factories import python

from edgepack.core.process import memory


def _groups(*files: tuple[str, str]) -> Path:
    for name, text in files:
        Path("groups", name).parent.mkdir(parents=True, exist_ok=True)
        Path("groups", name).write_text(text)
    return Path("groups")


def test_the_limits_of_a_group_and_of_those_above_it_count() -> None:
    """Version 2."""
    root = _groups(("a/b/memory.max", "max\n"), ("a/memory.max", "2000000\n"))
    Path("member").write_text("0::/a/b\n")
    assert [*memory._of_groups(root, Path("member"))] == [2_000_000]


def test_groups_of_the_first_version_are_known() -> None:
    root = _groups(
        ("memory/c/memory.limit_in_bytes", "3000\n"), ("memory/memory.limit_in_bytes", "9223372036854771712\n")
    )
    Path("member").write_text("5:cpu,cpuacct:/c\n4:memory:/c\n1:name=systemd:/c\n")
    assert [*memory._of_groups(root, Path("member"))] == [3000, 9_223_372_036_854_771_712]


def test_a_system_without_groups_has_no_limits_of_them() -> None:
    assert [*memory._of_groups(Path("nowhere"), Path("nowhere"))] == []


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_the_limits_of_a_process_count(limit: str) -> None:
    code = (
        "import resource; from edgepack.core.process import memory; before = memory.allowed() > 10**9;"
        f"resource.setrlimit(resource.{limit}, (10**9, resource.RLIM_INFINITY)); print(before, memory.allowed())"
    )
    assert python(code).out.split() == ["True", str(10**9)]
    assert resource.getrlimit(getattr(resource, limit))[0] == resource.RLIM_INFINITY
