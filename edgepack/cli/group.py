"""The command group: what `edgepack --help` shows."""

import click

from edgepack import __version__

_EXIT_CODES = """
\b
Exit codes
  0  every budget met                     5  a stage or an export failed
  1  a budget failed                     70  a bug in edgepack
  2  bad recipe, device file or usage   130  interrupted
  3  inconclusive or not measured
  4  device or infrastructure           CI may retry 3 and 4, never 1.
"""


@click.group(epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgepack")
def cli() -> None:
    """Compress a trained model for one device, prove it on the files you ship, and fail the build when it misses its
    budgets.

    \b
    edgepack check quickstart        is the recipe right?
    edgepack plan quickstart         what would a build do, and why?
    edgepack build quickstart        do it; the exit code is the verdict
    edgepack explain quickstart      what every stage cost and gained
    edgepack gate quickstart         judge it again, without building
    """
