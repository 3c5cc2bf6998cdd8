"""Nets of timm as files: pruned, in fp32 and int8, they answer as torch does."""

from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from factories import run_here
from torch_factories import context

from edgepack.compress.stages import prune, quantize
from edgepack.config import plugins
from edgepack.core.signature import Signature, TensorSpec
from edgepack.data.splits import Data, Split
from edgepack.export.contract import write
from edgepack.models.candidate import Candidate

pytestmark = pytest.mark.slow

PICTURE = TensorSpec(name="input", shape=(3, 64, 64))
SIGNATURE = Signature(inputs=(PICTURE,), labels=tuple(str(i) for i in range(10)))
