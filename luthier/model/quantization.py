"""Bases in 4 or 8 bits: whether this machine computes with them, how they load, and what they take.

bitsandbytes makes them from plain weights (QLoRA, https://arxiv.org/abs/2305.14314; LLM.int8(),
https://arxiv.org/abs/2208.07339). A folder may also hold weights that are quantized already.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.model_section import QuantizationConfig
from luthier.foundation.errors import ModelError, import_extra
from luthier.foundation.files import read_json
from luthier.foundation.heap import return_freed_memory
from luthier.model.heads import head_modules
from luthier.model.inspection import MODEL_CONFIG

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

BLOCK = 64  # 4 bits: weights that share a scale, as bitsandbytes loads them
OUTER_BLOCK = 256  # of those scales share another one with `double`


def weight_bytes(shape: tuple[int, int], how: QuantizationConfig) -> int:
    """Bytes that a linear layer's weight [out, in] takes, its scales and code tables included. Needs no torch."""
    count = shape[0] * shape[1]
    if how.bits == 8:
        return count + 4 * shape[0]  # a float32 scale for each row
    blocks = -(-count // BLOCK)
    code = 4 * 16
    packed = -(-count // 2)
    if not how.double:
        return packed + 4 * blocks + code
    return packed + blocks + 4 * -(-blocks // OUTER_BLOCK) + code + 4 * OUTER_BLOCK + 4


def saved_in(folder: Path) -> Mapping[str, Any] | None:
    """What a model's config.json says of weights that are quantized already; None where they are plain."""
    path = folder / MODEL_CONFIG
    found = read_json(path).get("quantization_config") if path.is_file() else None
    return found if isinstance(found, dict) else None


def saved_name(saved: Mapping[str, Any]) -> str:
    """A short name for already quantized weights: nf4, fp4, int8, or the method's own name."""
    if not _of_bitsandbytes(saved):
        return str(saved.get("quant_method"))
    return "int8" if saved.get("load_in_8bit") else str(saved.get("bnb_4bit_quant_type", "fp4"))


def _of_bitsandbytes(saved: Mapping[str, Any]) -> bool:
    return saved.get("quant_method") == "bitsandbytes" or bool(saved.get("load_in_4bit") or saved.get("load_in_8bit"))


def bitsandbytes() -> Any:
    """The library. Raises MissingExtraError where it is not installed."""
    import luthier.model.quiet  # noqa: F401 - it mutes what bitsandbytes says at its import

    return import_extra("bitsandbytes", extra="quantization", purpose="a base in 4 or 8 bits (model.quantization)")


def check_backend(how: QuantizationConfig, device: torch.device) -> None:
    """Try a tiny layer on the device.

    Raises:
        ModelError, MissingExtraError: this machine can't compute with such a base.
    """
    bitsandbytes()
    problem = try_layer(how, device)
    if problem:
        raise ModelError(
            f"model.quantization is {how}, which bitsandbytes does not do on {device.type} here: {problem}.",
            "Leave model.quantization out, or train on a device that `luthier doctor` says it works on.",
        )


def try_layer(how: QuantizationConfig, device: torch.device) -> str:
    """What goes wrong with forward and backward of a small quantized layer on a device; empty if nothing does."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = nn.Linear(64, 64, bias=False)
        rows = torch.randn(8, 64)
    try:
        layer = _quantized_layer(plain, how).to(device)
        settle(layer, torch.float32)
        given = rows.to(device).requires_grad_(True)
        found = layer(given)
        found.sum().backward()
        found, gradient = found.detach().float().cpu(), given.grad
    except Exception as error:  # whatever a missing or broken back end raises is the answer
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    expected = plain(rows).detach()
    error_share = float((found - expected).norm() / expected.norm())
    # nf4 is off by a tenth, int8 by a hundredth
    if not error_share < 0.3 or gradient is None:
        return f"a layer of 64 x 64 is off by {error_share:.0%}"
    return ""


def _quantized_layer(plain: nn.Linear, how: QuantizationConfig) -> nn.Module:
    import torch

    bnb = bitsandbytes()
    width = (plain.in_features, plain.out_features)
    layer: nn.Module
    if how.bits == 8:
        layer = bnb.nn.Linear8bitLt(*width, bias=False, has_fp16_weights=False, threshold=how.int8_threshold)
    else:
        layer = bnb.nn.Linear4bit(
            *width, bias=False, compute_dtype=torch.float32, compress_statistics=how.double, quant_type=how.type
        )
    layer.load_state_dict(plain.state_dict())
    return layer


def check_saved(folder: Path, saved: Mapping[str, Any], device: torch.device, *, training: bool) -> None:
    """Whether this machine loads the weights of a folder that are quantized already, as transformers sees it.

    Raises:
        ModelError: a package or a device is missing, or the format can't be trained on.
    """
    name = saved_name(saved)
    if _of_bitsandbytes(saved):
        check_backend(as_config(saved), device)
        return
    from transformers.quantizers import AutoHfQuantizer

    plain = "Take the model with plain weights; model.quantization: nf4 makes it as small."
    try:
        quantizer = AutoHfQuantizer.from_config(dict(saved), pre_quantized=True)
        quantizer.validate_environment(device_map={"": device})
        trainable = quantizer.is_trainable
    except (
        Exception
    ) as error:  # ImportError, RuntimeError, ValueError: each format has its own way to say what it lacks
        first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"the weights in {folder} are quantized with {name}, which can't be loaded here: {first}.", plain
        ) from error
    if training and not trainable:
        raise ModelError(
            f"the weights in {folder} are quantized with {name}, on which no adapter can be trained.", plain
        )


def as_config(saved: Mapping[str, Any]) -> QuantizationConfig:
    """The settings that a folder of bitsandbytes weights was saved with."""
    if saved.get("load_in_8bit"):
        return QuantizationConfig(bits=8, int8_threshold=saved.get("llm_int8_threshold", 6.0))
    return QuantizationConfig(
        bits=4,
        type=saved.get("bnb_4bit_quant_type", "fp4"),
        double=bool(saved.get("bnb_4bit_use_double_quant", False)),
    )


def loading_settings(
    how: QuantizationConfig,
    dtype: torch.dtype,
    skeleton: PreTrainedModel,
    device: torch.device | None = None,
    has_head: bool = False,
) -> Any:
    """transformers' BitsAndBytesConfig for loading plain weights into quantized layers.

    Args:
        skeleton: the model without weights, for the names of its layers.
        device: that will compute; None: the CPU.
        has_head: the model has a head that is no language model's, which learns and so stays plain.

    Raises:
        ModelError: no layer can be quantized on this device.
    """
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.base import get_keys_to_not_convert

    bitsandbytes()
    kept = list(head_modules(skeleton)) if has_head else []
    spared = [*get_keys_to_not_convert(skeleton), *kept]
    where = device.type if device is not None else "cpu"
    if how.bits == 8:
        return BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=how.int8_threshold, llm_int8_skip_modules=spared if kept else None
        )
    odd = odd_layers(skeleton) if odd_widths_are_wrong(where) else []
    if odd and len(odd) == len(quantized_layers(skeleton)):
        raise ModelError(
            f"model.quantization is {how}, but no layer of {type(skeleton).__name__} has a width that is a multiple of "
            f"{BLOCK}, and bitsandbytes computes others wrongly on this {where}.",
            "Use int8, or leave model.quantization out: a model so narrow needs none.",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=[*spared, *odd] if odd or kept else None,
        bnb_4bit_quant_type=how.type,
        bnb_4bit_use_double_quant=how.double,
        bnb_4bit_compute_dtype=compute_dtype(how, dtype),
    )


def compute_dtype(how: QuantizationConfig, dtype: torch.dtype) -> torch.dtype:
    """The precision of a 4-bit layer's products: the one asked for, or the other weights'."""
    import torch

    asked = how.compute_dtype or "auto"
    chosen: torch.dtype = dtype if asked == "auto" else getattr(torch, asked)
    return chosen


def settle(model: nn.Module, dtype: torch.dtype) -> None:
    """Make 4-bit layers compute in one precision, the same in training and evaluation.

    On a processor with bfloat16 units bitsandbytes repacks a layer at its first evaluation: from then on it multiplies
    in bfloat16, rounds its scales and passes no gradient back.

    Raises:
        ModelError: layers that were quantized elsewhere, of a width that this device computes wrongly.
    """
    module: Any
    for name, module in model.named_modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = dtype, True
            if module.in_features % BLOCK and odd_widths_are_wrong(module.weight.device.type):
                raise ModelError(
                    f"the weights of {name} are in 4 bits and {module.in_features} wide, no multiple of {BLOCK}, which "
                    "bitsandbytes computes wrongly on this device.",
                    "Take the model with plain weights, or another device.",
                )


def leave_the_file(model: nn.Module) -> None:
    """Give back what reading held on to: on a CPU the weights that stay plain lie in the file's mapping, which keeps all of
    the file in memory, and the heap keeps the buffers that layers were quantized in.

    smollm2-135m in nf4: 802 MB more than before it was read, 184 MB after this; 166 MB of these are the weights.
    """
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.device.type == "cpu" and weight.is_floating_point():
                weight.data = weight.data.clone()
    return_freed_memory()


@functools.cache
def odd_widths_are_wrong(device: str) -> bool:
    """Whether 4-bit weights come back wrong where a row's width is no multiple of the block, tried now.

    bitsandbytes 0.50.2 has a kernel for processors with AVX-512 that lets no block reach over a row's end, though they
    were made so: the weights are off by 38 % instead of 9 %, in forward and backward alike, and nothing is said.
    """
    import torch

    functional = bitsandbytes().functional
    weight = torch.linspace(-1, 1, BLOCK * 48).sin().mul(3).reshape(BLOCK, 48).to(device)
    back = functional.dequantize_4bit(*functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4"))
    return float((back - weight).norm() / weight.norm()) > 0.2


def odd_layers(model: PreTrainedModel) -> list[str]:
    """The layers to be quantized whose input's width is no multiple of the block."""
    from transformers.pytorch_utils import Conv1D

    found: list[str] = []
    for name in quantized_layers(model):
        layer: Any = model.get_submodule(name)
        width = layer.nx if isinstance(layer, Conv1D) else layer.in_features
        found += [name] if width % BLOCK else []
    return found


def is_quantized(module: nn.Module) -> bool:
    """Whether a layer's own weight is quantized: bitsandbytes' kinds of parameter. A wrapper of peft's is none."""
    return type(module._parameters.get("weight")).__name__ in ("Params4bit", "Int8Params")


def has_quantized(model: nn.Module) -> bool:
    """Whether any layer of a model is quantized."""
    return any(is_quantized(module) for module in model.modules())


def quantized_layers(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers that would be quantized: all but the head and what is tied to it. Works on a skeleton."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    spared = get_keys_to_not_convert(model)
    return [
        name
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, spared)
    ]


def dequantized(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose quantized layers became ordinary ones again, with the values that their bits stand for.

    Raises:
        ModelError: a format that transformers does not read back.
    """
    for name, module in list(model.named_modules()):
        if is_quantized(module):
            model.set_submodule(name, _plain_layer(module, dtype))
    if has_quantized(model):
        raise AssertionError("a quantized layer was left")
    marks: Any = model
    quantizer = marks.hf_quantizer
    if quantizer.quantization_config.quant_method != "bitsandbytes":
        try:
            quantizer.dequantize(model, dtype=dtype)
        except (NotImplementedError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"the quantized weights of {type(model).__name__} can't be read back as plain ones: {error}",
                "Merge into the model with plain weights.",
            ) from error
        return model
    quantizer.remove_quantization_config(model)
    # what renamed and unpacked the quantized weights while they were read would be turned round in saving
    marks._weight_conversions = [
        step for step in marks._weight_conversions if not any(hasattr(o, "hf_quantizer") for o in step.operations)
    ]
    marks.is_loaded_in_4bit = marks.is_loaded_in_8bit = False
    return model


def plain_values(module: Any) -> Tensor:
    """The values that a quantized layer's bits stand for, [out, in]."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    values: Tensor = dequantize_bnb_weight(module.weight, getattr(module, "state", None))
    return values


def _plain_layer(module: Any, dtype: torch.dtype) -> nn.Module:
    """An ordinary layer with a quantized one's values, of the kind that it stands for (GPT-2's Conv1D is transposed)."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    values = plain_values(module).to(dtype)
    transposed = getattr(module, "source_cls", nn.Linear) is Conv1D
    with torch.device("meta"):
        has_bias = transposed or module.bias is not None
        layer = (
            Conv1D(module.out_features, module.in_features)
            if transposed
            else nn.Linear(module.in_features, module.out_features, bias=has_bias)
        )
    layer.weight = nn.Parameter(values.T.contiguous() if transposed else values)
    if has_bias:
        layer.bias = nn.Parameter(module.bias.to(dtype))
    plain: nn.Module = layer
    return plain
