"""A program as XNNPACK takes it whole, where ExecuTorch's own lowering would leave some of it to slow kernels."""

import torch
from torch import fx
from torch.export import ExportedProgram

aten = torch.ops.aten
_HARD_SIGMOIDS = (aten.hardsigmoid.default, aten.hardsigmoid_.default)


def delegable(program: ExportedProgram, inputs: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """HardSigmoid as clamp(x + 3, 0, 6) / 6 with float constants.

    ExecuTorch's own form of it has whole numbers, and turns them into floats in every inference (1.4.1).
    """
    if not any(node.target in _HARD_SIGMOIDS for node in program.graph.nodes):
        return program
    module = program.module(check_guards=False)
    for node in [node for node in module.graph.nodes if node.target in _HARD_SIGMOIDS]:
        _spell_out(module, node)
    module.recompile()
    return torch.export.export(module, inputs)


def _spell_out(module: fx.GraphModule, node: fx.Node) -> None:
    with module.graph.inserting_before(node):
        added = module.graph.call_function(aten.add.Tensor, (node.args[0], _number(module, "three", 3.0)))
        clamped = module.graph.call_function(aten.hardtanh.default, (added, 0.0, 6.0))
        result = module.graph.call_function(aten.div.Tensor, (clamped, _number(module, "six", 6.0)))
    for each in (added, clamped, result):
        each.meta = {key: value for key, value in node.meta.items() if key in ("nn_module_stack", "stack_trace")}
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)


def _number(module: fx.GraphModule, name: str, value: float) -> fx.Node:
    own = f"_edgepack_{name}"  # no name of the model's
    if not hasattr(module, own):
        module.register_buffer(own, torch.tensor([value]))
    return module.graph.get_attr(own)
