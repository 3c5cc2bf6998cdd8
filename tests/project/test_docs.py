"""What the README and the help say is what there is."""

import re
import subprocess

import click
import pytest
from factories import PROJECT, edgepack

from edgepack.cli.group import cli

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def _commands(group: click.Group, *names: str) -> dict[tuple[str, ...], click.Command]:
    """Every command by its words: ("cache", "ls")."""
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in group.commands.items():
        inner = _commands(command, *names, name) if isinstance(command, click.Group) else {(*names, name): command}
        found.update(inner)
    return found


COMMANDS = _commands(cli)
EVERY_COMMAND = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


def test_the_commands_of_the_design_are_there() -> None:
    work = ["build", "check", "plan", "explain", "bench", "gate", "compare", "trend"]
    bundles = ["verify", "selftest", "sign", "unpack"]
    looks = ["devices", "stages", "schema", "doctor"]
    assert {*work, *bundles, *looks, "cache"} == {*cli.commands}
    assert {("cache", "ls"), ("cache", "gc")} <= {*COMMANDS}


@EVERY_COMMAND
def test_every_command_and_option_has_help(words: tuple[str, ...]) -> None:
    ran = edgepack(*words, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("Usage: edgepack " + " ".join(words))
    assert (COMMANDS[words].help or "").strip().split("\n")[0].endswith((".", ":"))
    for option in COMMANDS[words].params:
        assert not isinstance(option, click.Option) or option.help


def test_the_first_help_shows_the_exit_codes() -> None:
    shown = edgepack("--help").out
    for code in (0, 1, 2, 3, 4, 5, 70, 130):
        assert re.search(rf"(^|\s){code}  \S", shown)


@EVERY_COMMAND
def test_every_command_stands_in_the_readme(words: tuple[str, ...]) -> None:
    assert re.search(rf"edgepack {' '.join(words)}\b", README)


def _shown(program: str) -> set[str]:
    """The first word after `program` wherever the README shows it as code."""
    fenced = "\n".join(re.findall(r"^```.*?\n(.*?)^```", README, re.M | re.S))
    name = "([a-z0-9-]+)"
    return {*re.findall(rf"^(?:\$ )?{program} {name}", fenced, re.M), *re.findall(rf"`{program} {name}", README)}


def test_every_command_in_the_readme_is_there() -> None:
    assert _shown("edgepack") <= {words[0] for words in COMMANDS}


@pytest.mark.parametrize("target", sorted(_shown("make")))
def test_every_make_target_in_the_readme_is_there(target: str) -> None:
    done = subprocess.run(["make", "-C", PROJECT, "-n", target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_link_in_the_readme_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", README) if "://" not in link]
    assert [link for link in links if not (PROJECT / link).exists()] == []
