"""Define the settings: where tables are, which splits and columns they have."""

import re
from typing import Literal

from pydantic import Field, model_validator

from edgepack.data.datasets import _labelled as labelled
from edgepack.data.hub import HUB_NAME

_COMMIT = re.compile(r"[0-9a-f]{40}")

ENDINGS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
    ".arrow": "arrow",
}
Part = Literal["train", "validation", "test"]


class Config(labelled.Settings):
    path: str = Field(
        description="a folder, as save_to_disk writes it or with parquet, jsonl or csv files; such a file, or several, "
        "as data/*.parquet; or owner/name of the Hugging Face hub"
    )
    revision: str | None = Field(default=None, description="commit of a data set of the hub, 40 hexadecimal digits")
    name: str | None = Field(default=None, description="which of several configurations of a folder or data set")
    files: tuple[str, ...] = Field(
        default=tuple(f"*{ending}" for ending in ENDINGS),
        description="which files of a data set of the hub are downloaded",
    )
    splits: dict[Part, str] | None = Field(
        default=None, description="splits by other names: {train: train, test: dev}; what is not named is not used"
    )
    image: str | None = Field(default=None, description="column with the picture")
    text: str | None = Field(default=None, description="column with the text")
    label: str = Field(default="label", description="column with the label")

    @model_validator(mode="after")
    def _pinned(self) -> "Config":
        if self.image is None and self.text is None:
            raise ValueError("name the column with the picture (image) or with the text (text)")
        if self.revision is not None and not _COMMIT.fullmatch(self.revision):
            advice = "give the commit, 40 hexadecimal digits, from the history of its files on huggingface.co"
            raise ValueError(f"the revision {self.revision!r} is not pinned, so the data may change: {advice}")
        if self.revision is not None and not HUB_NAME.fullmatch(self.path):
            raise ValueError(f"a revision is for a data set of the hub, as owner/name, and {self.path!r} is none")
        if self.splits is not None and "train" not in self.splits:
            raise ValueError("splits must name the one to train on: splits: {train: ...}")
        return self

    @property
    def column(self) -> str:
        """Return the column with the samples."""
        found = self.text if self.text is not None else self.image
        assert found is not None, "one of them is given"
        return found
