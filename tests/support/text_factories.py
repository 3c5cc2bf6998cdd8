"""Tiny encoders and a text task that they learn in seconds."""

import json
from pathlib import Path
from typing import Any

import torch

from edgepack.config import plugins
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.splits import Data, Split, TrainingData
from edgepack.models.candidate import Candidate

LENGTH, TOKENS, LABELS = 16, 60, ("sport", "tech", "business")
KINDS = ("bert", "distilbert", "roberta", "electra")

_BERT: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": {**_BERT, "pad_token_id": 1},
    "electra": {**_BERT, "embedding_size": 16},
    "distilbert": {
        "vocab_size": TOKENS,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    },
}


def described(kind: str = "bert", folder: Path = Path("encoder"), **changes: Any) -> str:
    """The folder of an encoder's config.json, as a recipe names it; without weights."""
    folder.mkdir(exist_ok=True)
    facts = {"model_type": kind, **_CONFIGS[kind], **changes}
    (folder / "config.json").write_text(json.dumps(facts))
    return str(folder)


def signature(pad: int = 0, **changes: Any) -> Signature:
    """What text data tells of itself."""
    inputs = tuple(TensorSpec(name=n, shape=(LENGTH,), dtype="int64") for n in ("input_ids", "attention_mask"))
    special = {"pad": {"token": "[PAD]", "id": pad}}
    about = {"kind": "text", "vocabulary": TOKENS, "max_length": LENGTH, "special_tokens": special}
    return Signature(inputs=inputs, labels=LABELS, preprocessing={**about, **changes})


def encoder(kind: str = "bert", *, seed: int = 0, layers: int = 2, **changes: Any) -> Candidate:
    """An untrained encoder; `changes` are to its config.json."""
    torch.manual_seed(seed)
    changes = {"n_layers" if kind == "distilbert" else "num_hidden_layers": layers, **changes}
    choice = plugins.choose("models", {"huggingface": described(kind, Path(kind), **changes), "weights": None})
    return Candidate.start(choice, signature(pad=1 if kind == "roberta" else 0))


def embeds(size: int = 32, pad: int = 0) -> Signature:
    """What a model of embeddings is asked for; the encoders here are 32 wide."""
    return signature(pad).model_copy(update={"outputs": (TensorSpec(name="embedding", shape=(size,)),)})


def embedder(kind: str = "bert", size: int = 32, pooling: str | None = None, **changes: Any) -> Candidate:
    """An untrained encoder that gives embeddings."""
    torch.manual_seed(0)
    model = {"huggingface": described(kind, Path(kind), **changes), "weights": None, "pooling": pooling}
    return Candidate.start(plugins.choose("models", model), embeds(size, pad=1 if kind == "roberta" else 0))


def text(count: int = 96, *, pad: int = 0, seed: int = 0) -> TrainingData:
    """Texts of 4 to 16 tokens: which of the tokens 5, 6 and 7 is among them is their label."""
    return TrainingData(train=_split(count, pad, seed), validation=_split(count // 2, pad, seed + 1))


def _split(count: int, pad: int, seed: int) -> Split:
    random = torch.Generator().manual_seed(seed)
    targets = torch.randint(len(LABELS), (count,), generator=random)
    lengths = torch.randint(4, LENGTH + 1, (count, 1), generator=random)
    mask = (torch.arange(LENGTH) < lengths).long()
    ids = torch.randint(10, TOKENS, (count, LENGTH), generator=random)
    ids[:, 0], ids[:, 2] = 2, 5 + targets
    return Split(inputs=(torch.where(mask.bool(), ids, pad), mask), targets=targets)


def splits_of(data: Data) -> dict[str, Any]:
    return {"train": data.train, "validation": data.validation, "test": data.test}


def rows_of(data: Data) -> dict[str, list[tuple[int, ...]]]:
    """The ids of each document of each split."""
    return {part: [tuple(row) for row in split.head(len(split))[0].tolist()] for part, split in splits_of(data).items()}
