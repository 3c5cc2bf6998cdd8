"""ONNX Runtime, on the processor."""

from typing import Any

from edgepack.measure.runtimes.contract import NO_OUTPUTS, SUPPORTED_TYPES, Refused

_TYPES = {
    **{f"tensor({name})": name for name in ("float16", "bool")},
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{"tensor(float)": "float32", "tensor(double)": "float64"},
}
_PAST = "past_key_values."  # how the names of a decoder's states begin
_PLACES = "edgepack.places"  # of the longest text that it reads, as the file says


class Runtime:
    def __init__(self) -> None:
        import onnxruntime

        self.api = onnxruntime

    def start(self, threads: int) -> None:
        self.threads = threads

    def delegates(self) -> list[str]:
        return list(self.api.get_available_providers())

    def load(self, file: str) -> None:
        options = self.api.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if file.lower().endswith(".ort"):  # the runtime itself recognises only lower case
            options.add_session_config_entry("session.load_model_format", "ORT")
        self.session = self.api.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.inputs = self.session.get_inputs()
        found = [(value.name, tuple(value.shape), _fed(value)) for value in self.inputs]
        self.specs = [spec for spec in found if not spec[0].startswith(_PAST)]
        self.states = found[len(self.specs) :]
        if places := self.session.get_modelmeta().custom_metadata_map.get(_PLACES):
            self.specs = [(name, (1, int(places)), dtype) for name, _, dtype in self.specs]
        if not self.session.get_outputs():
            raise Refused(NO_OUTPUTS)
        first = self.session.get_outputs()[0]
        if first.type not in _TYPES:
            raise Refused(f"its output {first.name} is a {first.type}, which cannot be compared: {SUPPORTED_TYPES}")

    def bind(self, arrays: list[Any]) -> Any:
        return {value.name: arrays[i] for i, value in enumerate(self.inputs)}

    def run(self, bound: Any) -> Any:
        return self.session.run(None, bound)

    def arrays(self, outputs: Any) -> list[Any]:
        values = self.session.get_outputs()
        return [output for i, output in enumerate(outputs) if values[i].type in _TYPES]


def _fed(value: Any) -> str:
    if value.type not in _TYPES:
        raise Refused(f"its input {value.name} is a {value.type}, which cannot be fed: {SUPPORTED_TYPES}")
    return _TYPES[value.type]
