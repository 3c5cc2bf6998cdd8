"""The worker as one file: a zip application, which `python FILE JOB` runs."""

from functools import cache
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile, ZipInfo

from edgepack.core.runtimes import RUNTIMES

_ROOT = Path(__file__).parents[3]  # the folder that contains the package
_MAIN = "from edgepack.measure.worker.job import main\n\nmain()\n"
_MODULES = (
    "core/runtimes",
    "measure/worker/generation",
    "measure/worker/job",
    "measure/worker/modes",
    "measure/worker/system",
    "measure/runtimes/contract",
    *(f"measure/runtimes/{runtime.module}" for runtime in RUNTIMES.values()),
)


@cache
def packed() -> bytes:
    """Return the archive: the same bytes each time, so that a device that has them is not sent them again.

    It is not compressed: a device's Python may lack zlib, and starts faster without it.
    """
    content = BytesIO()
    with ZipFile(content, "w") as archive:
        for name, source in sorted(_sources().items()):
            archive.writestr(ZipInfo(name), source)  # dated 1980, and stored
    return content.getvalue()


def _sources() -> dict[str, str]:
    """Return each file by its name in the archive. Each __init__ is empty: what they import here is not needed."""
    files = [f"edgepack/{module}.py" for module in _MODULES]
    folders = {str(folder) for file in files for folder in Path(file).parents} - {"."}
    return {
        "__main__.py": _MAIN,
        **{f"{folder}/__init__.py": "" for folder in folders},
        **{file: (_ROOT / file).read_text(encoding="utf-8") for file in files},
    }
