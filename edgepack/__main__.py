"""The command `edgepack`: signals are answered before anything else is imported."""

from typing import NoReturn

from edgepack.core.errors import ExitCode
from edgepack.core.process import interrupts


def main() -> NoReturn:
    interrupts.install()
    try:
        from edgepack.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:  # before the command line could answer it, or after
        interrupts.end()
    except SystemExit as done:
        if done.code == ExitCode.INTERRUPTED:
            interrupts.end()  # what torch takes to be taken down nobody waits for
        raise


if __name__ == "__main__":
    main()
