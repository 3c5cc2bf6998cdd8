"""One text, one label."""

from edgepack.tasks._classification import METRIC, decide, distill, loss, score

__all__ = ["METRIC", "decide", "distill", "loss", "score"]
