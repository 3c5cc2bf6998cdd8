"""A task is a module with

METRIC                                      the name of its score
loss(logits, targets) -> Tensor             what training minimises; shapes [n, classes] and [n]
distill(logits, teacher, temperature)       how far a student is from its teacher
score(logits, targets) -> float             0 to 1, more is better; numpy arrays
decide(logits) -> array                     what an app would show, to compare two runtimes by

and, where it is for one kind of data,

misfit(signature) -> str                    why the data is not for it, or ""; no torch
"""

from typing import TYPE_CHECKING, Any, Protocol

from edgepack.core.frozen import Frozen
from edgepack.core.signature import Signature
from edgepack.data.splits import Data

if TYPE_CHECKING:
    from torch import Tensor


class Dataset(Protocol):
    Config: type[Frozen]

    def describe(self, config: Any) -> Signature: ...
    def fingerprint(self, config: Any) -> str: ...
    def load(self, config: Any) -> Data: ...


class Task(Protocol):
    METRIC: str

    def loss(self, logits: "Tensor", targets: "Tensor") -> "Tensor": ...
    def distill(self, logits: "Tensor", teacher: "Tensor", temperature: float) -> "Tensor": ...
    def score(self, logits: Any, targets: Any) -> float: ...
    def decide(self, logits: Any) -> Any: ...
