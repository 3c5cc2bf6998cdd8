"""Your own texts or numbers in CSV files: one row per sample, with what is right in one column or several.

news.csv, from which the splits are drawn, or a file for each split; the first row names the columns.
"""

from types import ModuleType

from edgepack.core.signature import Signature
from edgepack.data.datasets.csv import documents, numbers
from edgepack.data.datasets.csv.config import Config
from edgepack.data.splits import Data

__all__ = ["Config", "attachments", "describe", "fingerprint", "load", "notes"]


def _kind(config: Config) -> ModuleType:
    return numbers if config.features else documents


def describe(config: Config) -> Signature:
    """Read every row, since the labels are there. Raises RecipeError for all problems of rows and tokenizer."""
    found: Signature = _kind(config).describe(config)
    return found


def notes(config: Config) -> tuple[str, ...]:
    """Return warnings about the labels. Reads every row."""
    found: tuple[str, ...] = _kind(config).notes(config)
    return found


def fingerprint(config: Config) -> str:
    """Return a digest of the files' contents and how they are read; their paths do not matter."""
    return str(_kind(config).fingerprint(config))


def attachments(config: Config) -> dict[str, bytes]:
    found: dict[str, bytes] = _kind(config).attachments(config)
    return found


def load(config: Config) -> Data:
    found: Data = _kind(config).load(config)
    return found
