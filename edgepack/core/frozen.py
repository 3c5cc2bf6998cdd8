"""The base of every value that is read from a file or written to one."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]  # a JSON object: what is written to a file or a worker, or read from one


class Frozen(BaseModel):
    """Base of every value that is read from or written to a file: immutable, keyword-only, unknown keys are errors."""

    RENAMED: ClassVar[Mapping[str, str]] = {}  # keys by their former names, so that an old name gets a hint

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Moment = Annotated[float, Field(ge=0, lt=2**37)]  # seconds since 1970, limited to years that datetime can represent
