"""YAML to frozen values: lines, key paths, what the reader accepts and what it never does."""

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from edgepack.config.document import ConfigError, Document, read_value
from edgepack.core.errors import ExitCode, RecipeError
from edgepack.core.frozen import Frozen


class Inner(Frozen):
    count: int = 1
    kind: Literal["one", "two"] = "one"


class Outer(Frozen):
    name: str = "x"
    inner: Inner = Inner()
    either: int | str = 1
    items: tuple[Inner, ...] = ()
    maybe: Inner | None = None


def _problems(text: str) -> list[tuple[int, str, str]]:
    document = Document.parse(text, Path("x.yaml"))
    document.check(Outer, document.data)
    with pytest.raises(ConfigError) as caught:
        document.raise_problems()
    assert caught.value.code == ExitCode.USAGE
    return [(each.line, each.path, each.message) for each in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\ninner:\n  count: x\n", (3, "inner.count", "expected a whole number, got 'x'")),
        ("items:\n- count: 1\n- {kind: three}\n", (3, "items[1].kind", "unknown value 'three' (allowed: one, two)")),
        (
            "items:\n- kind: twoo\n",
            (2, "items[0].kind", "unknown value 'twoo': did you mean 'two'? (allowed: one, two)"),
        ),
        ("items: {count: 1}\n", (1, "items", "expected a list, got a mapping")),
        (
            "maybe: {cuont: 1}\n",
            (1, "maybe.cuont", "unknown key 'cuont': did you mean 'count'? (allowed: count, kind)"),
        ),
        ("either: [1]\n", (1, "either", "expected a whole number, got a list")),
        ("inner:\n", (1, "inner", "expected a mapping (key: value), got nothing")),
        (
            "name: yes please\ninner: {count: 1, kund: one}\n",
            (2, "inner.kund", "unknown key 'kund': did you mean 'kind'? (allowed: count, kind)"),
        ),
    ],
)
def test_one_mistake_is_one_problem_at_its_line(text: str, expected: tuple[int, str, str]) -> None:
    assert _problems(text) == [expected]


def test_every_mistake_is_reported_in_the_order_of_the_file() -> None:
    found = _problems("nam: 1\nitems:\n  - count: a\n    kind: b\ninner: 3\n")
    assert [line for line, _, _ in found] == [1, 3, 4, 5]


def test_a_problem_reads_as_file_line_path_and_message() -> None:
    with pytest.raises(
        ConfigError, match=r"^==> x\.yaml:2\n  at name\n  the key 'name' is given twice \(line 3 too\)$"
    ):
        Document.parse("items: []\nname: a\nname: b\n", Path("x.yaml")).raise_problems()


def test_a_path_below_the_current_folder_is_shown_as_the_user_would_type_it(own_place: Path) -> None:
    for path, shown in ((own_place / "a" / "b.yaml", "a/b.yaml"), (Path("/nowhere/b.yaml"), "/nowhere/b.yaml")):
        with pytest.raises(ConfigError, match=f"==> {shown}\n"):
            Document.read(path)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: 1\nb: [x, {c: 2.5}]\n", {"a": 1, "b": ("x", {"c": 2.5})}),
        ("a: &b [1, 2]\nc: *b\n", {"a": (1, 2), "c": (1, 2)}),
        ("\ufeffa: 1\n", {"a": 1}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("a: 50 %\nb: no\nc: 010\nd: 1_000\n", {"a": "50 %", "b": "no", "c": 10, "d": 1000}),
        ("2: x\n", {"2": "x"}),
        ("# first\n\na: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
    ],
)
def test_plain_data_comes_out(text: str, data: dict[str, Any]) -> None:
    assert Document.parse(text, Path("x.yaml")).data == data


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("x-b: &b {count: 1, kind: one}\ninner:\n  <<: *b\n", {"count": 1, "kind": "one"}),
        ("x-b: &b {count: 1, kind: one}\ninner:\n  kind: two\n  <<: *b\n", {"kind": "two", "count": 1}),
        ("x-a: &a {p: 1}\nx-b: &b {p: 2, q: 3}\ninner: {<<: [*a, *b], r: 4}\n", {"p": 1, "q": 3, "r": 4}),
        ("x-a: &a {p: 1}\nx-b: &b {<<: *a, q: {s: 3}}\ninner: {<<: *b}\n", {"p": 1, "q": {"s": 3}}),
        ("x-a: &a [{p: 1}, {q: 2}]\ninner: {<<: *a}\n", {"p": 1, "q": 2}),
        ('inner: {"<<": 1}\n', {"<<": 1}),
    ],
)
def test_mappings_are_merged_and_their_own_keys_win(text: str, data: dict[str, Any]) -> None:
    assert Document.parse(text, Path("x.yaml")).data == {"inner": data}
    from ruamel.yaml import YAML

    plain = YAML(typ="safe", pure=True).load(text)["inner"]  # by the reader of YAML itself
    assert dict(plain) == data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x-b: &b\n  count: x\ninner:\n  <<: *b\n", (2, "inner.count", "expected a whole number, got 'x'")),
        ("x-b: &b {count: x}\ninner:\n  <<: *b\n  count: y\n", (4, "inner.count", "expected a whole number, got 'y'")),
        ("inner:\n  <<: 3\n", (2, "inner.<<", "expected a mapping to merge, as <<: *base, or a list of such")),
        ("x-b: &b {}\nmaybe:\n  <<: *b\n  <<: *b\n", (3, "maybe.<<", "the key '<<' is given twice (line 4 too)")),
        ("name: &b a\nname: c\n", (1, "name", "the key 'name' is given twice (line 2 too)")),
    ],
)  # fmt: skip
def test_a_mistake_in_what_is_merged_is_told_where_it_stands(text: str, expected: tuple[int, str, str]) -> None:
    assert _problems(text) == [expected]


def test_merges_of_merges_end_before_the_memory_does() -> None:
    levels = (f"x-{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12))
    for text in (f"x-0: &a0 {{k: 1}}\n{''.join(levels)}", "a: &a\n  <<: *a\n"):
        with pytest.raises(ConfigError, match=r"more than 10000 values|nested too deeply"):
            Document.parse(text, Path("x.yaml"))


def test_a_file_cannot_run_code(own_place: Path) -> None:
    for text in ("a: !!python/object/apply:os.mkdir [ran]\n", "a: !!python/name:os.system\n", "a: !ran x\n"):
        try:
            document = Document.parse(text, Path("x.yaml"))
        except ConfigError:
            continue
        assert not callable(document.data["a"])
    assert not (own_place / "ran").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("50 %", "50 %"), ("[a, {b: [1]}]", ("a", {"b": (1,)})), ("{}", {}), ("true", True), ("", None)],
)
def test_values_on_the_command_line_are_yaml(text: str, value: object) -> None:
    assert read_value(text) == value


@pytest.mark.parametrize("text", ["[1", "*a", "a: b: c", "!!python/name:os.system"])
def test_a_value_on_the_command_line_that_is_no_yaml(text: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        read_value(text)


def test_values_are_frozen_and_keyword_only() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Inner(count=2).count = 3
    with pytest.raises(TypeError):
        Inner(2)  # type: ignore[call-arg]
