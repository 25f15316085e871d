"""A whole model: the adapter folded into its base, in transformers' format."""

from __future__ import annotations

from luthier.config.sections import PluginOptions
from luthier.exporting.exporter import Comparison, ExportRequest, sample_tokens


class Options(PluginOptions):
    """The merged format has no settings of its own."""

    name: str = "merged"


class Merged:
    """Merges in float32, whatever the target precision: 16-bit sums would lose the small updates."""

    def export(self, request: ExportRequest) -> Comparison:
        """Merge, write, read back, compare."""
        import torch

        from luthier.model import loading
        from luthier.model.heads import saved_head
        from luthier.model.inspection import check_folder
        from luthier.model.merging import check_mergeable, largest_difference, merge, sample_logits
        from luthier.model.quiet import quiet_bars

        source, trust = request.source, request.trust_remote_code
        for part in source.adapters:
            check_mergeable(part.folder)
        tokens = sample_tokens(source, trust)
        model = loading.load(source, torch.float32, trust_remote_code=trust).eval()
        before = sample_logits(model, tokens)
        merged = merge(model)
        own = str(getattr(loading.config_at(source.base, trust_remote_code=trust), "dtype", None) or "float32")
        dtype = own.removeprefix("torch.") if request.dtype == "auto" else request.dtype
        merged.to(getattr(torch, dtype))
        tokenizer = loading.tokenizer_at(source.tokenizer, trust_remote_code=trust)
        _keep_stop_tokens(merged, source)
        with quiet_bars():
            merged.save_pretrained(request.building, max_shard_size=request.max_shard_size)
        tokenizer.save_pretrained(request.building)
        check_folder(request.building)
        del merged, model
        head = saved_head(request.building)
        again = loading.weights_at(request.building, torch.float32, head=head, trust_remote_code=trust).eval()
        return Comparison(dtype, largest_difference(before, sample_logits(again, tokens)), float(before.abs().max()))


def _keep_stop_tokens(merged: object, source: object) -> None:
    """The generation_config saved beside an adapter says where its answers end: it goes with the merged model."""
    from transformers import GenerationConfig

    folder = getattr(source, "adapter", None)
    if folder is not None and (folder / "generation_config.json").exists():
        merged.generation_config = GenerationConfig.from_pretrained(folder)  # type: ignore[attr-defined]


def build(options: Options) -> Merged:
    """The format."""
    return Merged()
