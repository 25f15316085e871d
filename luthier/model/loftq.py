"""LoftQ: LoRA's update starts as the nearest one of its rank to what quantization took from the weights (Li et al. 2023,
https://arxiv.org/abs/2310.08659, with one iteration: the quantized weights stay as they are).

Such an adapter belongs to the quantized base: on plain weights it would add what they never lost. A file beside it says so.

Shapes: O outputs, I inputs, r rank.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.foundation.errors import ModelError
from luthier.foundation.files import read_json
from luthier.model.inspection import INDEX_NAME
from luthier.model.quantization import is_quantized, plain_values, saved_in


def start_from_the_error(model: Any, folder: Path) -> None:
    """Set both factors of every update beside a quantized layer: s B A is the best rank-r part of W - Q.

    DoRA's magnitude, where there is one, becomes that of the rows of Q + s B A.

    Args:
        model: a fresh LoRA of peft's on quantized weights.
        folder: the plain weights that they were made from.

    Raises:
        ModelError: the folder has no plain weights, or not under the layers' names.
    """
    from peft.tuners.lora import LoraLayer

    if saved_in(folder) is not None:
        raise ModelError(
            f"method.init is loftq, but the weights in {folder} are quantized already: what they lost is not known.",
            "Name the model with plain weights and set model.quantization, or leave method.init out.",
        )
    weights = _PlainWeights(folder)
    inner = model.get_base_model()
    for name, layer in inner.named_modules():
        if not isinstance(layer, LoraLayer) or not is_quantized(layer.get_base_layer()):
            continue
        base: Any = layer.get_base_layer()
        kept_OI = plain_values(base)
        plain = weights.of(name, inner.base_model_prefix).to(kept_OI.device, torch.float32)
        # GPT-2's Conv1D keeps its weight transposed, its quantized layer does not
        plain_OI = plain.T if getattr(base, "source_cls", torch.nn.Linear) is not torch.nn.Linear else plain
        down_rI, up_Or = nearest(plain_OI - kept_OI.float(), layer.r["default"], layer.scaling["default"])
        layer.lora_A["default"].weight.data.copy_(down_rI)
        layer.lora_B["default"].weight.data.copy_(up_Or)
        if "default" in layer.lora_magnitude_vector:  # DoRA took it while the update was zero
            started_OI = kept_OI.float() + layer.scaling["default"] * up_Or @ down_rI
            layer.lora_magnitude_vector["default"].weight.data.copy_(started_OI.norm(dim=1))


def nearest(error_OI: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """Factors A [r, I] and B [O, r] for which scaling * B A is nearest to a matrix, by its singular values."""
    left, values, right = torch.linalg.svd(error_OI, full_matrices=False)
    root = (values[:rank] / scaling).sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


class _PlainWeights:
    """Tensors of a model's folder by their names, one file after the other."""

    def __init__(self, folder: Path) -> None:
        index = folder / INDEX_NAME
        self._folder = folder
        self._files: dict[str, str] = read_json(index)["weight_map"] if index.is_file() else {}

    def of(self, module: str, prefix: str) -> Tensor:
        """A module's weight; a family may store it without the backbone's prefix."""
        from safetensors import safe_open

        for name in (f"{module}.weight", f"{module}.weight".removeprefix(f"{prefix}.")):
            file = self._folder / self._files.get(name, "model.safetensors")
            if not file.is_file():
                continue
            with safe_open(file, framework="pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118 - it is no dict
                    found: Tensor = tensors.get_tensor(name)
                    return found
        raise ModelError(
            f"method.init is loftq, but {self._folder} does not store the weight of {module} under its name.",
            "Leave method.init out: this family keeps its weights in another shape.",
        )
