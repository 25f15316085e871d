"""bitsandbytes is imported where a layer is quantized, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import warm_python

# in a process that has imported what a run needs
PROGRAM = """
import importlib.util, sys
import torch
from luthier.config.model_section import QuantizationConfig
from luthier.config.plugins import METHODS
from luthier.model import loading
from luthier.model.method import Apply
from pathlib import Path

folder = Path(sys.argv[1])
lora = METHODS.load("lora")

def tuned(**how):
    model = loading.weights_at(folder, torch.float32, **how)
    return lora.build(lora.Options()).apply(model, Apply(seed=0, base_name="b", total_steps=1, quantized=bool(how)))

assert "peft" in sys.modules and "bitsandbytes" not in sys.modules
plain = tuned()
assert "bitsandbytes" not in sys.modules and "torch._inductor.compile_fx" not in sys.modules
assert importlib.util.find_spec("bitsandbytes") is not None
quantized = tuned(quantization=QuantizationConfig(bits=8))
kinds = {type(module).__module__ for module in quantized.modules() if type(module).__name__ == "Linear8bitLt"}
assert kinds == {"bitsandbytes.nn.modules", "peft.tuners.lora.bnb"}, kinds
"""


def test_only_quantized_bases_import_it(tiny_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    done = warm_python.run("-c", PROGRAM, str(tiny_llama), outputs=tmp_path)
    assert done.returncode == 0, done.stderr
