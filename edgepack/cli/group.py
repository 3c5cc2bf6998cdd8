"""Define the command group that `edgepack --help` shows."""

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
    """Compress a trained model for one device, measure the exported files, and fail the build if they miss a budget.

    \b
    edgepack check quickstart        validate the recipe
    edgepack plan quickstart         list the steps of a build
    edgepack build quickstart        build; the exit code is the verdict
    edgepack explain quickstart      show what each stage cost and gained
    edgepack gate quickstart         check the budgets again, without building
    """
