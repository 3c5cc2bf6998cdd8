"""Settings of CSV files with texts or numbers."""

from pydantic import Field, model_validator

from edgepack.data.texts import corpus
from edgepack.data.texts.tables import Tables

_OF_TEXTS = {"tokenizer", *corpus.Settings.model_fields} - {"validation", "test"}


class Config(corpus.Settings, Tables):
    """Inputs are texts, or numbers if `features` names their columns."""

    text: str = Field(default="text", description="column with the text")
    features: tuple[str, ...] = Field(default=(), description="columns with numbers as inputs, instead of texts")
    tokenizer: str = Field(
        default="",
        description="for texts: a folder with tokenizer.json, all-MiniLM-L6-v2, or a model name on the hub",
    )

    @model_validator(mode="after")
    def _texts_or_numbers(self) -> "Config":
        if not self.features and not self.tokenizer:
            raise ValueError("texts need a tokenizer; for numbers name their columns: features: [...]")
        fields = type(self).model_fields
        odd = sorted(name for name in _OF_TEXTS if self.features and getattr(self, name) != fields[name].default)
        if odd:
            raise ValueError(f"{odd[0]} is for texts, but inputs are numbers: remove it, or features")
        twice = [name for name in self.features if self.features.count(name) > 1 or name in self.of_target]
        if twice:
            raise ValueError(f"the column {twice[0]!r} is named twice")
        return self
