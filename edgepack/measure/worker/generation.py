"""Run a file that generates text: it takes tokens, and states that go from one call to the next.

A state is the place of the first token, int64 [1], where the file itself keeps what it has read; else keys and values,
of which the file gives back longer ones. A text begins with a place of 0, or with keys and values of no tokens.
"""

from typing import Any

from edgepack.measure.runtimes.contract import Refused, Runtime


def states(runtime: Runtime, read: int = 0) -> list[Any]:
    """Return states as they are when so many tokens have been read, whatever these were; [] for other files."""
    import numpy

    found = []
    for _, shape, dtype in runtime.states:
        sizes = [size if isinstance(size, int) else read for size in shape]
        found.append(numpy.full(sizes, read if dtype == "int64" else 0, dtype))
    return found


def outputs(runtime: Runtime, arrays: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return these arrays in two: outputs, and states for the next call."""
    given = 0 if len(runtime.states) == 1 else len(runtime.states)
    return arrays[: len(arrays) - given], arrays[len(arrays) - given :]


def greedy(runtime: Runtime, prompt: Any, count: int) -> list[int]:
    """Return the tokens that follow a prompt, [length], always the likeliest one."""
    import numpy

    if not runtime.states:
        raise Refused("it has no state, so it generates no text")
    tokens, read, kept, written = prompt[None], 0, states(runtime), []
    for _ in range(count):
        [logits], after = outputs(runtime, runtime.arrays(runtime.run(runtime.bind([tokens, *kept]))))
        read += tokens.shape[1]
        kept = after or states(runtime, read)
        written.append(int(logits[0, -1].argmax()))
        tokens = numpy.array([written[-1:]])
    return written
