"""The command line: parse, call, render, exit.

A command is a function under `@cli.command()` in one of the modules imported below; a new module is added to that line.
Its docstring is its help, its return value the exit code. It imports what is heavy itself, so that `--help` stays
instant; arguments that several share stand in options.py, what is printed in views/, what it does in workflows/.
"""

import errno
import sys
from contextlib import suppress
from typing import NoReturn

import click

from edgepack.cli import build, bundles, catalog, devices, judge  # noqa: F401  (each adds its commands)
from edgepack.cli.group import cli
from edgepack.cli.streams import TolerantFile, annotate, tell, tolerant_streams
from edgepack.core.errors import EdgepackError, ExitCode, most_decisive
from edgepack.core.process import interrupts, openmp


def main() -> NoReturn:
    """Run the command line. Every failure gives one of the exit codes, and none shows a traceback."""
    interrupts.install()
    openmp.wait_asleep()
    TolerantFile.lost.clear()
    with tolerant_streams():
        code = _run()
        interrupts.close()
    sys.exit(most_decisive([code, _full(TolerantFile.lost[0])]) if TolerantFile.lost else code)


def _run() -> int:
    try:
        code = cli.main(prog_name="edgepack", standalone_mode=False)
        interrupts.check()
    except BaseException as error:
        return _failed(error)
    return code if isinstance(code, int) else ExitCode.OK


def _failed(error: BaseException) -> int:
    """Print why the command failed; returns the exit code."""
    if interrupts.behind(error) or isinstance(error, click.Abort):
        interrupts.heard()
        tell("interrupted; finished steps are cached, run the same command to continue")
        return ExitCode.INTERRUPTED
    try:
        raise error
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        code = ExitCode.USAGE
    except EdgepackError as error:
        tell(str(error))
        annotate(error, sys.stdout)
        code = error.code
    except OSError as error:
        code = _full(error) if error.errno == errno.ENOSPC else _bug(error)
    except MemoryError:
        tell("out of memory\n  close other programs, or use a computer with more memory")
        code = ExitCode.DEVICE
    except (Exception, SystemExit) as error:  # no command calls exit itself: if a library does, that is not a verdict
        code = _bug(error)
    return code


def _full(error: OSError) -> ExitCode:
    why = "no space left on the disk" if error.errno == errno.ENOSPC else error.strerror
    tell(f"could not write all output: {why}\n  free disk space, or write the output to another disk")
    return ExitCode.DEVICE


def _bug(error: BaseException) -> ExitCode:
    import tempfile
    import traceback

    where = "this command"
    with suppress(OSError), tempfile.NamedTemporaryFile("w", prefix="edgepack-", suffix=".log", delete=False) as log:
        log.write("".join(traceback.format_exception(error)))
        where = log.name
    tell(f"this is a bug in edgepack: {type(error).__name__}: {error}\n  please report it with {where}")
    return ExitCode.BUG
