"""torchvision beside any torch: in processes of their own, where nothing has imported it before."""

from __future__ import annotations

import subprocess
import sys


def told(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_network_is_built_without_torchs_compiler_which_is_there_when_it_is_asked_for():
    code = """
import sys
import torch
from pipeline.vision import torchvision
network = torchvision.models.squeezenet1_1(weights=None).eval()
assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
assert not [m for m in sys.modules if m == "sympy" or m.startswith("torch._dynamo")]
asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported
from torch._dynamo.utils import is_compile_supported
assert asked("cpu") == is_compile_supported("cpu") and torch._dynamo.utils.is_compile_supported is is_compile_supported
print("done")
"""
    assert told(code) == "done"


def test_a_compiler_that_is_loaded_already_is_left_alone():
    code = """
import sys
import torch._dynamo
before = torch._dynamo
from pipeline.vision import torchvision
assert sys.modules["torch._dynamo"] is before
print("done")
"""
    assert told(code) == "done"
