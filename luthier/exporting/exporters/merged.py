"""A whole model: the adapter folded into its base, in transformers' format."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from luthier.config.sections import PluginOptions
from luthier.exporting.exporter import Comparison, ExportRequest, sample_tokens
from luthier.foundation.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from luthier.model.loading import ModelSource


class Options(PluginOptions):
    """The merged format has no settings of its own."""

    name: str = "merged"


class Merged:
    """Merges in float32, whatever the target precision: 16-bit sums would lose the small updates."""

    def export(self, request: ExportRequest) -> Comparison:
        """Merge, write, read back, compare; also with the quantized base that an adapter was trained on.

        The adapter goes into the plain weights that the quantized ones were made from, where there are any.
        """
        import torch

        from luthier.model import loading
        from luthier.model.heads import look_past_padding, saved_head
        from luthier.model.inspection import check_folder
        from luthier.model.merging import check_mergeable, largest_difference, merge, sample_logits
        from luthier.model.quiet import quiet_bars, quiet_offload

        source, trust = request.source, request.trust_remote_code
        for part in source.adapters:
            check_mergeable(part.folder)
        tokens = sample_tokens(source, trust)
        trained_on = sample_logits(_as_trained(source, trust), tokens) if _is_quantized(source) else None
        own = str(getattr(loading.config_at(source.base, trust_remote_code=trust), "dtype", None) or "float32")
        dtype = own.removeprefix("torch.") if request.dtype == "auto" else request.dtype
        if request.placement is not None and dtype != "float32":
            raise UserError(
                f"--device-map exports what it merges, in float32, and not in {dtype}.", "Add --dtype float32."
            )
        model = loading.load(
            source, torch.float32, plain=True, placement=request.placement, trust_remote_code=trust
        ).eval()
        look_past_padding(model, source.adapter)
        before = sample_logits(model, tokens)
        merged = merge(model)
        if request.placement is None:
            _to(merged, getattr(torch, dtype))
        tokenizer = loading.tokenizer_at(source.tokenizer, trust_remote_code=trust)
        _keep_stop_tokens(merged, source)
        with quiet_bars(), quiet_offload():
            merged.save_pretrained(request.building, max_shard_size=request.max_shard_size)
        tokenizer.save_pretrained(request.building)
        check_folder(request.building)
        del merged, model
        head = saved_head(request.building)
        again = loading.weights_at(
            request.building, torch.float32, head=head, placement=request.placement, trust_remote_code=trust
        ).eval()
        after = sample_logits(again, tokens)
        beside_quantized = largest_difference(trained_on, after) if trained_on is not None else None
        return Comparison(dtype, largest_difference(before, after), float(before.abs().max()), beside_quantized)


def _to(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Into a precision, but for what transformers keeps in float32 in any: rounded, a router's biases choose other experts."""
    kept = [re.compile(pattern.replace("*", ".*")) for pattern in model._get_dtype_plan(dtype)]
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point() and not any(pattern.search(name) for pattern in kept):
            tensor.data = tensor.data.to(dtype)


def _is_quantized(source: ModelSource) -> bool:
    return source.settings.quantization is not None or source.saved_quantization is not None


def _as_trained(source: ModelSource, trust_remote_code: bool) -> Any:
    """The quantized base with its adapter, on the device that computes with it."""
    import torch

    from luthier.foundation.devices import choose_device
    from luthier.model import loading
    from luthier.model.heads import look_past_padding

    device = choose_device()
    loading.check_quantization(source, device, training=False)
    model = loading.load(source, torch.float32, device=device, trust_remote_code=trust_remote_code).eval()
    look_past_padding(model, source.adapter)
    return model


def _keep_stop_tokens(merged: object, source: object) -> None:
    """The generation_config saved beside an adapter says where its answers end: it goes with the merged model."""
    from transformers import GenerationConfig

    folder = getattr(source, "adapter", None)
    if folder is not None and (folder / "generation_config.json").exists():
        merged.generation_config = GenerationConfig.from_pretrained(folder)  # type: ignore[attr-defined]


def build(options: Options) -> Merged:
    """The format."""
    return Merged()
