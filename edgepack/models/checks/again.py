"""Load a saved candidate in a fresh process and run it: `python -m edgepack.models.checks.again FOLDER`."""

import sys
from pathlib import Path

import numpy

from edgepack.core.errors import EdgepackError
from edgepack.models.candidate import Candidate
from edgepack.models.checks.steady import ANSWERS, answer
from edgepack.models.checks.trial import some_inputs


def main(folder: Path) -> None:
    try:
        candidate = Candidate.load(folder)
    except EdgepackError as error:
        sys.exit(error.message)
    given = answer(candidate.module.eval(), some_inputs(candidate.signature))
    numpy.save(folder / ANSWERS, given.numpy(), allow_pickle=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
