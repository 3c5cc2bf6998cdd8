"""Find the line of a model's own code that an error comes from.

    'features.3.conv', nets.py:41: x = x.nonzero()

Of a failing forward the traceback tells; of an operator in an exported graph the stacks that torch.export notes of it.
"""

import ast
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from textwrap import dedent
from traceback import FrameSummary, extract_tb, walk_tb
from typing import Any

import torch
from torch import fx, nn

import edgepack
from edgepack.core.errors import EdgepackError, StageError

_SHAPES = "the computation must not depend on tensor values or on the number of samples: use torch.where for masks"
_NAMED = re.compile(r"OpOverload\(op='(\w+)\.(\w+)'|torch\._?ops\.(\w+)\.(\w+)|\b(\w+)::(\w+)|\b(aten|prims)\.(\w+)")
_IN_A_PASS = re.compile(r"when running the '\w+' pass")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]+)')


def of_error(error: BaseException, module: nn.Module) -> str:
    """Where in `module` a forward failed: the innermost part, and the innermost line that is not torch's. Or ""."""
    names = {id(part): name for name, part in module.named_modules()}
    inside = [names.get(id(frame.f_locals.get("self"))) for frame, _ in walk_tb(error.__traceback__)]
    part = next((name for name in reversed(inside) if name is not None), None)
    return "" if part is None else place(part, extract_tb(error.__traceback__))


def of_node(node: fx.Node) -> str:
    """Where the operator of an exported graph comes from, or ""."""
    traced = _FRAME.findall(node.meta.get("stack_trace") or "")
    frames = [FrameSummary(file, int(line), "", line=code, lookup_line=False) for file, line, code in traced]
    return place(part_of(node), frames)


def part_of(node: fx.Node) -> str:
    """The name of the module that a node lies in, as the candidate calls it."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    named = [str(name) for name, _ in stack]
    # Candidate.program puts a bare Sequential into another, under this name.
    wrapped = named[1:2] == ["model"] and all(str(kind).endswith("Sequential") for _, kind in stack[:2])
    return (named or [""])[-1].removeprefix("model." if wrapped else "")


def place(part: str, frames: Sequence[FrameSummary]) -> str:
    """A part of the model, and the innermost line of its code among these frames, the innermost last."""
    return _listed(part, _line(frames))


def _listed(part: str, line: str) -> str:
    return ", ".join(filter(None, (f"'{part}'" if part else "", line)))


def _line(frames: Sequence[FrameSummary]) -> str:
    """The innermost line of the model's code, "nets.py:41: x = x.nonzero()"; "" where all of it is torch's."""
    own = [frame for frame in frames if not _library(frame.filename)]
    return _shown(own[-1].filename, own[-1].lineno or 0, own[-1].line or "") if own else ""


@cache
def _library(file: str) -> bool:
    """Whether a file is torch's or edgepack's, or none at all, as of code that was made while tracing."""
    path = Path(file)
    return not path.is_file() or any(path.is_relative_to(folder) for folder in _LIBRARIES)


_LIBRARIES = (Path(torch.__file__).parent, Path(edgepack.__file__).parent)


def _shown(file: str, line: int, code: str) -> str:
    path, here = Path(file), Path.cwd()
    short = path.relative_to(here) if path.is_relative_to(here) else path.name
    return f"{short}:{line}: {code.strip()}"


def of_answer(module: nn.Module, inputs: Sequence[torch.Tensor]) -> str:
    """Where what `module` gives is made: the innermost part that returns this very thing, and the line that does."""
    made: list[tuple[str, Any]] = []  # kept, so that no two of them have one identity

    def noted(name: str) -> Callable[..., None]:
        return lambda part, given, answer: made.append((name, answer))

    hooks = [part.register_forward_hook(noted(name)) for name, part in module.named_modules()]
    try:
        with torch.no_grad():
            answer = module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    part = next(name for name, each in made if each is answer)
    return _listed(part, _returning(module.get_submodule(part)))


def _returning(module: nn.Module) -> str:
    """The line of its forward that returns, or that begins it where none or several do."""
    forward = type(module).forward
    try:
        lines, first = inspect.getsourcelines(forward)
        found = [node for node in ast.walk(ast.parse(dedent("".join(lines)))) if isinstance(node, ast.Return)]
        file = inspect.getfile(forward)
    except (OSError, TypeError, SyntaxError):
        return ""
    at = found[0].lineno - 1 if len(found) == 1 else 0
    return "" if _library(file) else _shown(file, first + at, lines[at])


@contextmanager
def exporting(module: nn.Module) -> Iterator[None]:
    """Inside, what torch.export cannot take is a StageError that names where it stands."""
    try:
        yield
    except (EdgepackError, MemoryError):
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("torch.export failed")
        raise StageError(
            f"torch.export cannot take this model{_at(of_error(error, module))}{_why(error)}", _SHAPES
        ) from error


def check_shapes(program: "torch.export.ExportedProgram") -> None:
    """Raises StageError where the shape of something depends on the values in a tensor: no runtime can plan for it."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and free_unbacked_symbols(value):
            message = f"the shape of what '{node.target}' gives depends on the data{_at(of_node(node))}"
            raise StageError(message, _SHAPES)


class UnplacedError(StageError):
    """An exporter's failure of which it is not known where in the model it stands."""


@contextmanager
def lowering(format: str, program: "Callable[[], torch.export.ExportedProgram]") -> Iterator[None]:
    """Inside, an operator that an exporter cannot write is a StageError that names it, its module and its line."""
    try:
        yield
    except (EdgepackError, MemoryError, OSError):
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("the export to %s failed", format)
        node = _blamed(error, program())
        if node is None:
            raise UnplacedError(
                f"{format} cannot take this model{_why(error)}", "see build.log for the traceback"
            ) from error
        advice = f"write it with other operators, or remove {format} from `export`; see build.log for the traceback"
        raise StageError(
            f"{format} has nothing for the operator '{node.target}'{_at(of_node(node))}", advice
        ) from error


def _blamed(error: BaseException, program: "torch.export.ExportedProgram") -> fx.Node | None:
    """The operator that an exporter's error names, in the model's own graph or as it is taken apart. None where it
    may be any of several.
    """
    text = "\n".join(str(each) for each in _causes(error))
    named = [next(filter(None, match[1::2])) for match in _NAMED.findall(text)]
    traced = {line for line in map(_line_of, _FRAME.findall(text)) if line}
    for each in (program, None):  # taking it apart takes a while
        graph = (each or program.run_decompositions()).graph
        nodes = [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
        for fits in (str.__eq__, _tail):
            found = [node for name in named for node in nodes if fits(_operator(node), name)]
            if found:
                there = [node for node in found if any(line in of_node(node) for line in traced)]
                # A pass that fails names what it came to, which says nothing of the others of its kind.
                return next(iter(there or found)) if there or len(found) == 1 or not _IN_A_PASS.search(text) else None
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    """The innermost first: it names what went wrong, the others what was being done."""
    return [*_causes(error.__cause__ or error.__context__), error] if error else []


def _line_of(frame: tuple[str, str, str]) -> str:
    file, line, code = frame
    return "" if _library(file) else _shown(file, int(line), code)


def _operator(node: fx.Node) -> str:
    """
    "special_bessel_j0", of aten.special_bessel_j0.default
    """
    return str(node.target._schema.name).partition("::")[2]


def _tail(one: str, other: str) -> bool:
    """Whether one is the other under a family's name: special_bessel_j0 and bessel_j0."""
    return one.endswith(f"_{other}") or other.endswith(f"_{one}")


def _at(place: str) -> str:
    return f", at {place}" if place else ""


def _why(error: BaseException) -> str:
    from edgepack.core.errors import reason

    return f" ({reason(error)})"
