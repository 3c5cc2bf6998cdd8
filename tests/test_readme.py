"""The README's example of a stage in one file really is a stage."""

import re
import types
from pathlib import Path

from torch_factories import candidate, context

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_stage_in_one_file_runs() -> None:
    source = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "def run(" in block)
    stage = types.ModuleType("sparsify")
    exec(source, stage.__dict__)  # noqa: S102
    before = candidate()
    after = stage.run(before, stage.Config(threshold=0.1), context())
    weights = [weight for weight in after.module.parameters() if weight.dim() > 1]
    assert weights
    assert all(((weight == 0) | (weight.abs() >= 0.1)).all() for weight in weights)
    assert after.notes == ("threshold 0.1",)
