"""List what an ExecuTorch build for one .pte needs: the operators that it runs itself, with their types."""

import contextlib
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

_OPERATORS = "selected_operators.yaml"

_BUILDING = """\
In a checkout of https://github.com/pytorch/executorch at the tag `v{version}`, with its submodules:

```
cmake -B build -DCMAKE_BUILD_TYPE=MinSizeRel -DEXECUTORCH_OPTIMIZE_SIZE=ON {flag}\\
  -DEXECUTORCH_BUILD_EXTENSION_MODULE=ON -DEXECUTORCH_BUILD_EXTENSION_DATA_LOADER=ON \\
  -DEXECUTORCH_BUILD_EXTENSION_FLAT_TENSOR=ON -DEXECUTORCH_BUILD_EXTENSION_TENSOR=ON \\
  {quantized}-DEXECUTORCH_SELECT_OPS_MODEL="$BUNDLE/$MODEL" -DEXECUTORCH_ENABLE_DTYPE_SELECTIVE_BUILD=ON
cmake --build build
```

Link `executorch` and `extension_module_static`, and whole (`--whole-archive`): {libraries}. {operators}
Leave `EXECUTORCH_ENABLE_DTYPE_SELECTIVE_BUILD` out where the optimized kernels are linked: it knows the portable ones.
`{name}` says the same for a build of your own: `codegen/gen.py --op_selection_yaml_path`.
"""
_QUANTIZED = "-DEXECUTORCH_BUILD_KERNELS_QUANTIZED=ON "


def files(path: Path, backend: ModuleType) -> dict[str, bytes]:
    from importlib.metadata import version

    selected, operators = _selected(path)
    libraries = [f"`{name}`" for name in (backend.LIBRARY, "executorch_kernels") if name]
    note = f"ExecuTorch itself runs of operators: {', '.join(operators)}" if operators else "The backend runs all of it"
    text = _BUILDING.format(
        version=version("executorch").partition("+")[0],
        flag=f"{backend.BUILD} " if backend.BUILD else "",
        libraries=" and ".join(libraries),
        quantized=_QUANTIZED if any(name.startswith("quantized_decomposed::") for name in operators) else "",
        operators=f"{note}.",
        name=_OPERATORS,
    )
    return {_OPERATORS: selected, "BUILDING.md": text.encode()}


def _selected(path: Path) -> tuple[bytes, list[str]]:
    """Return ExecuTorch's own list and the names in it, without the path of the file on this computer."""
    from executorch.codegen.tools.gen_oplist import gen_oplist
    from ruamel.yaml import YAML

    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        output = Path(folder) / _OPERATORS
        gen_oplist(output_path=output, model_file_path=str(path))
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        selection = yaml.load(output)
        for operator in selection["operators"].values():
            operator["debug_info"] = [path.name]
        yaml.dump(selection, output)
        return output.read_bytes(), list(selection["operators"])
