"""Text that a file wrote."""

from pydantic import Field

from edgepack.core.frozen import Frozen


class Generated(Frozen):
    """The tokens that a file writes, always the likeliest one, after the first `prompt` tokens of a sample."""

    prompt: int = Field(ge=1)
    tokens: tuple[int, ...] = Field(min_length=1)
