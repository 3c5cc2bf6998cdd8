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
    """Say where in `module` a forward failed: innermost module, and innermost line that is not torch's. Or ""."""
    names = {id(part): name for name, part in module.named_modules()}
    inside = [names.get(id(frame.f_locals.get("self"))) for frame, _ in walk_tb(error.__traceback__)]
    part = next((name for name in reversed(inside) if name is not None), None)
    return "" if part is None else place(part, extract_tb(error.__traceback__))


def of_node(node: fx.Node) -> str:
    """Say where the operator of an exported graph comes from, or ""."""
    traced = _FRAME.findall(node.meta.get("stack_trace") or "")
    frames = [FrameSummary(file, int(line), "", line=code, lookup_line=False) for file, line, code in traced]
    return place(part_of(node), frames)


def part_of(node: fx.Node) -> str:
    """Return the name of a node's module in the candidate."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    named = [str(name) for name, _ in stack]
    # Candidate.program puts a bare Sequential into another, under this name.
    wrapped = named[1:2] == ["model"] and all(str(kind).endswith("Sequential") for _, kind in stack[:2])
    return (named or [""])[-1].removeprefix("model." if wrapped else "")


def place(part: str, frames: Sequence[FrameSummary]) -> str:
    """Format a module and the innermost line of the model's code among these frames, which end with the innermost."""
    return _listed(part, _line(frames))


def _listed(part: str, line: str) -> str:
    return ", ".join(filter(None, (f"'{part}'" if part else "", line)))


def _line(frames: Sequence[FrameSummary]) -> str:
    """Return the innermost line of the model's code, "nets.py:41: x = x.nonzero()"; "" if all are torch's."""
    own = [frame for frame in frames if not _library(frame.filename)]
    return _shown(own[-1].filename, own[-1].lineno or 0, own[-1].line or "") if own else ""


@cache
def _library(file: str) -> bool:
    """Return whether a file belongs to torch or edgepack, or does not exist, as for code generated while tracing."""
    path = Path(file)
    return not path.is_file() or any(path.is_relative_to(folder) for folder in _LIBRARIES)


_LIBRARIES = (Path(torch.__file__).parent, Path(edgepack.__file__).parent)


def _shown(file: str, line: int, code: str) -> str:
    path, here = Path(file), Path.cwd()
    short = path.relative_to(here) if path.is_relative_to(here) else path.name
    return f"{short}:{line}: {code.strip()}"


def of_answer(module: nn.Module, inputs: Sequence[torch.Tensor]) -> str:
    """Say where the output of `module` is made: the innermost module that returns this object, and its return line."""
    made: list[tuple[str, Any]] = []  # kept alive, so that no two have the same id

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
    """Return the line of the return in its forward, or the first line if there are none or several."""
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
    """Turn what torch.export cannot take into a StageError that names the place in the model."""
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
    """Raises StageError where a shape depends on the values of a tensor: no runtime can plan memory for it."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and free_unbacked_symbols(value):
            message = f"the shape of what '{node.target}' gives depends on the data{_at(of_node(node))}"
            raise StageError(message, _SHAPES)


class UnplacedError(StageError):
    """An exporter failed, and the place in the model is not known."""


@contextmanager
def lowering(format: str, program: "Callable[[], torch.export.ExportedProgram]") -> Iterator[None]:
    """Turn an exporter's failure into a StageError that names the operator, its module and its source line."""
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
    """Return the operator that an exporter's error names, in the model's own graph or decomposed. None if it may be any
    of several.
    """
    text = "\n".join(str(each) for each in _causes(error))
    named = [next(filter(None, match[1::2])) for match in _NAMED.findall(text)]
    traced = {line for line in map(_line_of, _FRAME.findall(text)) if line}
    for each in (program, None):  # decomposing takes a while
        graph = (each or program.run_decompositions()).graph
        nodes = [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
        for fits in (str.__eq__, _tail):
            found = [node for name in named for node in nodes if fits(_operator(node), name)]
            if found:
                there = [node for node in found if any(line in of_node(node) for line in traced)]
                # A failing pass names the operator it had reached; another one of its kind may be at fault.
                return next(iter(there or found)) if there or len(found) == 1 or not _IN_A_PASS.search(text) else None
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    """List an error's causes, the innermost first: it says what went wrong, the others what was being done."""
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
    """Return whether one is the other with a family prefix: special_bessel_j0 and bessel_j0."""
    return one.endswith(f"_{other}") or other.endswith(f"_{one}")


def _at(place: str) -> str:
    return f", at {place}" if place else ""


def _why(error: BaseException) -> str:
    from edgepack.core.errors import reason

    return f" ({reason(error)})"
