"""ExecuTorch by its Python bindings, which want torch."""

from typing import Any

from edgepack.measure.runtimes.contract import NO_OUTPUTS, SUPPORTED_TYPES, Refused, Spec

_TYPES = dict(  # the order of c10::ScalarType
    enumerate(("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"))
)
_TYPES[11] = "bool"
_GENERATES = "use_kv_cache"  # the method of a file that reads tokens, and the place of the first of them


class Runtime:
    def __init__(self) -> None:
        import torch  # its libraries and types must be loaded before the runtime's own
        from executorch.extension.pybindings import _portable_lib  # isort: skip
        import executorch.kernels.quantized  # noqa: F401  (the kernel of int8 embedding tables)

        self.torch, self.api = torch, _portable_lib

    def start(self, threads: int) -> None:
        """Start threads; they run on the cores that the process is pinned to at that time."""
        self.torch.set_num_threads(1)
        self.api._unsafe_reset_threadpool(threads)  # before the first load: later it corrupts the heap

    def delegates(self) -> list[str]:
        return sorted(self.api._get_registered_backend_names())

    def load(self, file: str) -> None:
        self.program = self.api._load_program(file)  # kept: the method uses its memory
        self.method = self.program.load_method("forward")
        meta = self.method.method_meta()
        if not meta.num_outputs():
            raise Refused(NO_OUTPUTS)
        found = [self._spec(meta, i) for i in range(meta.num_inputs())]
        methods = [self.program.get_method_name(i) for i in range(self.program.num_methods())]
        inputs = 1 if _GENERATES in methods else len(found)
        self.specs, self.states = found[:inputs], found[inputs:]

    def _spec(self, meta: Any, i: int) -> Spec:
        try:
            tensor = meta.input_tensor_meta(i)
        except IndexError:
            raise Refused(f"its input {i} is not a tensor, which cannot be fed: {SUPPORTED_TYPES}") from None
        if tensor.dtype() not in _TYPES:
            named = {15: "bfloat16", 27: "uint16", 28: "uint32", 29: "uint64"}.get(tensor.dtype(), "of another type")
            raise Refused(f"its input {i} is {named}, which cannot be fed: {SUPPORTED_TYPES}")
        return f"input {i}", tuple(tensor.sizes()), _TYPES[tensor.dtype()]

    def bind(self, arrays: list[Any]) -> Any:
        return [self.torch.from_numpy(array) for array in arrays]

    def run(self, bound: Any) -> Any:
        return self.method(bound)

    def arrays(self, outputs: Any) -> list[Any]:
        if not isinstance(outputs[0], self.torch.Tensor):
            raise Refused(f"its first output is a {type(outputs[0]).__name__}, not a tensor, which cannot be compared")
        return [output.numpy() for output in outputs if isinstance(output, self.torch.Tensor)]
