"""Make weights int8 or int4 and activations int8: calibrated on training samples, or with quantization-aware training.

Which tensors become int8 is for a quantizer to say: the one that the files want, a plugin in quantizers/.

`ptq` calibrates only. `qat` starts from there and trains with the rounding in the loop; the teacher keeps teaching.
`best` does both and keeps what is better on the validation split. Of an encoder the Linear layers and the embedding
tables become int8; LayerNorm, softmax and what adds up stay float. A range measured in each inference is that of a
whole tensor in torch and ONNX, and that of each row in XNNPACK; in a decoder it is that of each row everywhere. Of an
LSTM the weights become int8 in the graph, and the runtimes round what they multiply in each step; a GRU stays float.
With `fp32: auto` the blocks that are faster in fp32 are found by timing them on the device, before any training.

int4 weights are those of Linear layers, with a scale for each group of inputs; activations then have a range for each
token, in ONNX Runtime for each group. Tables of 4 or 2 bits are rounded in groups as well.
Source: B. Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
CVPR 2018, arXiv 1712.05877.
"""

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from edgepack.compress.contract import Context, Training
from edgepack.config.plugins import DEFAULT_QUANTIZER
from edgepack.config.recipe import Place
from edgepack.core.errors import StageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import GraphModule
    from torch.nn import Module

    from edgepack.compress.contract import Latency
    from edgepack.compress.stages.quantize.contract import Scheme
    from edgepack.compress.stages.quantize.mixed_precision import Precision as Found
    from edgepack.compress.training.evaluation import EpochResult
    from edgepack.config.device import Quantization
    from edgepack.data.splits import Split
    from edgepack.models.candidate import Candidate

TAKES, GIVES = "eager", "exported"
VERSION = 11
LIBRARIES = ("torchao", "executorch")
READS = ("int8_saturates",)
USES_QUANTIZER = True

Mode = Literal["ptq", "qat", "best"]
_FREEZE = 0.4  # share of the epochs after which the ranges of activations and weights are frozen
_FEW = 2  # calibration samples where observers of weights need one run, and no other ranges are calibrated
_TIMED = 64  # calibration samples for a model that is only timed: ranges do not change its speed
_AUTO = "auto"
_GROUP: Literal[32] = 32
_LISTED = {"type": "array", "items": {"type": "string"}}

Layers = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda given: (_AUTO,) if given == _AUTO else given),
    WithJsonSchema({"anyOf": [{"enum": [_AUTO]}, _LISTED]}),
]


class Config(Training):
    mode: Mode = Field(
        default="qat",
        description="ptq: calibration only; qat: quantization-aware training; best: the better of the two",
    )
    epochs: int = Field(default=3, ge=0, le=10_000, description="epochs of qat")
    learning_rate: float = Field(default=1e-4, gt=0, description="peak learning rate, a tenth of that for fine-tuning")
    calibration: int = Field(
        default=512,
        ge=1,
        description="number of training samples that set the ranges of activations",
    )
    activations: Literal["auto", "static", "dynamic"] = Field(
        default="auto",
        description="ranges: static (calibrated) or dynamic (measured in each inference); auto: dynamic for encoders",
    )
    weights: Literal["int8", "int4"] = Field(
        default="int8", description="int4: those of Linear layers only, in groups, with dynamic activations"
    )
    group: Literal[32, 64, 128, 256] = Field(
        default=_GROUP,
        description="number of inputs of a layer that share a scale, for int4 weights and tables of 4 or 2 bits",
    )
    embeddings: bool = Field(default=True, description="quantize embedding tables too")
    tables: Literal[8, 4, 2] = Field(default=8, description="bits of a number in embedding tables")
    fp32: Layers = Field(
        default=(),
        description="names or patterns of layers to keep in fp32; auto: those faster in fp32, timed in the first "
        "export format only",
    )

    @field_validator("precision")
    @classmethod
    def _full(cls, precision: str) -> str:
        if precision not in ("auto", "fp32"):
            raise ValueError(f"precision must be fp32 here, got {precision}: simulated int8 computes in fp32 only")
        return precision

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.weights == "int4" and self.activations == "static":
            raise ValueError("int4 weights need dynamic activations: remove `activations`")
        if self.tables < 8 and not self.embeddings:
            raise ValueError(f"tables of {self.tables} bits need `embeddings: true`")
        if self.group != _GROUP and self.weights == "int8" and self.tables == 8:
            raise ValueError("group is for int4 weights and tables of 4 or 2 bits: there are none here")
        return self

    @property
    def low_bits(self) -> str:
        """Return what has fewer than 7 bits, or ""."""
        tables = f"tables of {self.tables} bits" if self.tables < 8 else ""
        return "int4 weights" if self.weights == "int4" else tables

    @property
    def trainings(self) -> tuple[Training, ...]:
        return () if self.mode == "ptq" else (self,)

    @property
    def needs_timing(self) -> bool:
        return _AUTO in self.fp32

    @property
    def budgets_used(self) -> tuple[str, ...]:
        return ("size",) if self.needs_timing else ()

    @property
    def named(self) -> tuple[str, ...]:
        """Return the patterns of `fp32`."""
        return tuple(pattern for pattern in self.fp32 if pattern != _AUTO)


def incompatibility(config: Config, place: Place) -> str:
    """Say why quantization makes no sense at this place, or ""."""
    if config.low_bits and place.whole_bytes:
        formats = " and ".join(place.whole_bytes)
        return f"{config.low_bits} cannot be stored by {formats}: use int8 weights and tables, or another export"
    if config.needs_timing and place.evidence != "measured":
        return (
            f"fp32: {_AUTO} needs timings measured on the device, but this device's are {place.evidence}: "
            "name the layers to keep in fp32, or none"
        )
    return ""


def dry_run(
    candidate: "Candidate",
    config: Config,
    quantization: "Quantization",
    latency: "Latency | None" = None,
    quantizer: str = DEFAULT_QUANTIZER,
) -> "Candidate":
    """Check export, scheme and patterns on the untrained model. Raises StageError for what `run` cannot do."""
    from edgepack.compress.stages.quantize.capture import capture
    from edgepack.compress.stages.quantize.convert import converted
    from edgepack.compress.stages.quantize.observers import prepare

    graph = capture(candidate, config.named, embeddings=config.embeddings)
    observed = prepare(graph, _scheme(candidate, config, quantization, quantizer), training=False)
    _observe(observed, candidate.noise(), candidate)
    return replace(candidate, module=converted(observed), form="exported")


def run(candidate: "Candidate", config: Config, context: Context) -> "Candidate":
    from edgepack.compress.stages.quantize.capture import EVERYTHING, capture
    from edgepack.compress.stages.quantize.convert import converted
    from edgepack.compress.stages.quantize.observers import prepare

    if config.needs_timing:
        return _mixed(candidate, config, context)
    graph = capture(candidate, config.fp32, embeddings=config.embeddings)
    scheme = _scheme(candidate, config, context.quantization, context.quantizer)
    observed = prepare(graph, scheme, training=False)
    _calibrate(observed, context.data.train.first(_FEW if scheme.dynamic else config.calibration), candidate)
    notes = _notes(candidate, config, scheme)
    if config.mode == "ptq" or EVERYTHING in config.fp32:
        return _quantized(candidate, converted(observed), notes)
    trained, best = _trained(graph, observed, scheme, candidate, config, context)
    notes = [*notes, f"kept epoch {best.epoch} of {config.epochs}"]
    if config.mode == "qat":
        return _quantized(candidate, trained, notes)
    mode, module, reason = _better({"ptq": converted(observed), "qat": trained}, context)
    return replace(_quantized(candidate, module, [*notes, reason]), decided={"mode": mode})


def _mixed(candidate: "Candidate", config: Config, context: Context) -> "Candidate":
    """Find by timing which blocks to keep in fp32, then continue as if the recipe had named them."""
    found = _precision(candidate, config, context)
    made = run(candidate, config.model_copy(update={"fp32": found.fp32}), context)
    return replace(made, notes=(*found.notes, *made.notes), decided={**made.decided, "fp32": [*found.fp32]})


def _precision(candidate: "Candidate", config: Config, context: Context) -> "Found":
    import torch

    from edgepack.compress.stages.quantize.capture import capture, layers_with_weights
    from edgepack.compress.stages.quantize.convert import converted
    from edgepack.compress.stages.quantize.mixed_precision import Trials, blocks, decide, grouped
    from edgepack.compress.stages.quantize.observers import prepare
    from edgepack.models.structure.layer_names import matches

    scheme = _scheme(candidate, config, context.quantization, context.quantizer)
    samples = context.data.train.first(_FEW if scheme.dynamic else min(config.calibration, _TIMED))

    @lru_cache(maxsize=2)  # the best set and int8 are timed alternately
    def made(patterns: tuple[str, ...]) -> "Candidate":
        observed = prepare(capture(candidate, patterns, embeddings=config.embeddings), scheme, training=False)
        _calibrate(observed, samples, candidate)
        return _quantized(candidate, converted(observed), [])

    free = [layer for layer in layers_with_weights(candidate) if not matches(layer, config.named)]
    with torch.random.fork_rng(devices=[]):  # a rebuild from the decision must draw the same numbers
        return decide(Trials(given=config.named, groups=grouped(blocks(free)), make=made, context=context))


def _quantized(candidate: "Candidate", module: "GraphModule", notes: list[str]) -> "Candidate":
    return replace(candidate, module=module, form="exported", notes=tuple(notes))


def _scheme(candidate: "Candidate", config: Config, quantization: "Quantization", quantizer: str) -> "Scheme":
    """Choose the scheme. Dynamic ranges suit encoders: a third of the error of fixed ones, faster on both runtimes.

    Raises StageError for int4 weights in a network of convolutions.
    """
    from torch.nn.modules.conv import _ConvNd

    from edgepack.compress.stages.quantize.contract import Scheme
    from edgepack.models.structure.decoder import Decoder
    from edgepack.models.structure.encoder import blocks

    encoder, decoder = bool(blocks(candidate.module)), isinstance(candidate.module, Decoder)
    int4 = config.weights == "int4"
    if int4 and not encoder and any(isinstance(layer, _ConvNd) for layer in candidate.module.modules()):
        reason = "int4 weights are those of Linear layers: no runtime here has kernels for int4 convolutions"
        raise StageError(f"{reason}, which this model has", "set weights to int8")
    dynamic = encoder if config.activations == "auto" else config.activations == "dynamic"
    return Scheme(
        quantizer=quantizer,
        bits=4 if int4 else 7 if quantization.int8_saturates else 8,
        table_bits=config.tables,
        group=config.group,
        dynamic=dynamic or int4,
        linear_only=encoder or int4,
        by_rows=decoder,
    )


def _notes(candidate: "Candidate", config: Config, scheme: "Scheme") -> list[str]:
    from edgepack.models.structure.layer_names import matches

    saturates = ["weights have 7 bits: the device's int8 products saturate"] * (scheme.bits == 7)
    in_groups = [f"weights: int4, a scale for each {scheme.group} inputs"] * scheme.int4
    dynamic = ["activations: int8, their ranges measured in each inference"] * scheme.dynamic
    between = ["kept in fp32: all but Linear layers and embedding tables"] * scheme.linear_only
    tables = ["kept in fp32: embedding tables"] * (not config.embeddings)
    if scheme.table_bits < 8:
        tables = [f"embedding tables: {scheme.table_bits} bits, a scale for each {scheme.group} numbers"]
    grus = [name for name in _grus(candidate.module) if not matches(name, config.fp32)]
    gated = [f"kept in fp32: {name} (a GRU): ONNX Runtime has no int8 operator for it" for name in grus]
    kept = [f"kept in fp32: {pattern}" for pattern in config.fp32]
    return [*saturates, *in_groups, *dynamic, *between, *tables, *gated, *kept]


def _grus(module: "Module") -> list[str]:
    from torch import nn

    return [name for name, layer in module.named_modules() if isinstance(layer, nn.GRU)]


def _calibrate(prepared: "GraphModule", samples: "Split", candidate: "Candidate") -> None:
    import torch

    with torch.no_grad():
        for batch in samples.batches(min(64, samples.most)):
            _observe(prepared, batch.inputs, candidate)


def _observe(prepared: "GraphModule", inputs: "tuple[Tensor, ...]", candidate: "Candidate") -> None:
    """Feed the observers. Raises StageError where the range of an activation is not finite."""
    from edgepack.models.checks.finite import NOT_FINITE, first_not_finite

    try:
        prepared(*inputs)
    except RuntimeError as error:
        if place := first_not_finite(candidate.module, inputs) or first_not_finite(prepared, inputs):
            raise StageError(f"the range of an activation is NaN or Inf{place}", NOT_FINITE) from error
        raise


def _trained(
    graph: "GraphModule",
    observed: "GraphModule",
    scheme: "Scheme",
    candidate: "Candidate",
    config: Config,
    context: Context,
) -> "tuple[GraphModule, EpochResult]":
    """Run QAT from the calibrated ranges, so that its epoch 0 is the calibrated model."""
    from edgepack.compress.stages.quantize.convert import converted
    from edgepack.compress.stages.quantize.observers import freeze_ranges, prepare, take_ranges
    from edgepack.compress.training.loop import fit
    from edgepack.compress.training.loss import Distillation

    prepared = prepare(graph, scheme, training=True)
    _calibrate(prepared, context.data.train.first(_FEW), candidate)
    take_ranges(prepared, observed)
    best = fit(
        prepared,
        context,
        config,
        doing=f"training with {config.weights} in the loop",
        distillation=Distillation.of(context.teacher),
        snapshot=converted,
        each_epoch=lambda epoch: freeze_ranges(prepared) if epoch >= _FREEZE * config.epochs else None,
    )
    return converted(prepared), best


def _better(modules: "dict[Mode, GraphModule]", context: Context) -> "tuple[Mode, GraphModule, str]":
    """Return the module with the better validation score; on a tie, the lower loss; on another tie, the first."""
    from edgepack.compress.training.evaluation import validate

    found = {mode: validate(module, context) for mode, module in modules.items()}
    kept = max(found, key=lambda mode: (context.task.better(found[mode].score), -found[mode].loss))
    scores = [
        f"{mode}: {context.task.metric} {context.task.shown(each.score)}, loss {each.loss:.4f}"
        for mode, each in found.items()
    ]
    return kept, modules[kept], f"kept {kept} ({'; '.join(scores)} on the validation split)"
