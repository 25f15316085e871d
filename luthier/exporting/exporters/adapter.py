"""The adapter alone, in peft's format, with tokenizer and template."""

from __future__ import annotations

import shutil
from dataclasses import replace

from luthier.config.adapters_section import STACK, CombineConfig
from luthier.config.sections import PluginOptions
from luthier.exporting.exporter import Comparison, ExportRequest, sample_tokens
from luthier.foundation.errors import ModelError, UserError
from luthier.model.method import METHOD_STATE


class Options(PluginOptions):
    """The adapter format has no settings of its own."""

    name: str = "adapter"


# what a training run keeps beside the model, of no use to who loads it
TRAINING_STATE = (
    "manifest.json", "loop_state.json", "optimizer.json", "optimizer.safetensors", "trainer_state.json", METHOD_STATE,
)  # fmt: skip


class Adapter:
    """Copies an adapter without its training state."""

    def export(self, request: ExportRequest) -> Comparison:
        """Copy, load again on the base, compare.

        Raises:
            ModelError: the model has no adapter. UserError: another precision was asked for.
        """
        import torch

        from luthier.model import loading
        from luthier.model.adapters import held_rows
        from luthier.model.merging import largest_difference, sample_logits

        source = request.source
        if source.adapter is None:
            raise ModelError(f"{source.base} is a whole model, it has no adapter to export.", "Use --format merged.")
        if request.dtype != "auto":
            raise UserError(
                f"--dtype {request.dtype} has no effect on an adapter, which stays as it was trained.", "Leave it out."
            )
        combined = source.combine.name != STACK
        if not combined and (len(source.adapters) > 1 or source.adapters[0].weight != 1):
            raise ModelError(
                "adapters that are stacked or weighted are no single adapter.",
                "Use --format merged, or make one of them with --combine cat (or svd, ties, ...).",
            )
        tokens, trust = sample_tokens(source, request.trust_remote_code), request.trust_remote_code
        tuned = loading.load(source, torch.float32, trust_remote_code=trust).eval()
        for path in sorted(source.adapter.iterdir()):
            own = path.name in ("adapter_model.safetensors", "adapter_config.json")
            if (
                path.is_file()
                and path.name not in TRAINING_STATE
                and not (combined and (own or path.name == "README.md"))
            ):
                shutil.copyfile(path, request.building / path.name)
        if combined:
            tuned.peft_config["default"].base_model_name_or_path = source.base_name
            tuned.peft_config["default"].revision = source.revision
            held = any(held_rows(tuned.get_base_model(), part) is not None for part in source.adapters)
            tuned.save_pretrained(request.building, save_embedding_layers=held)
            (request.building / "README.md").unlink(missing_ok=True)  # peft's empty model card
        before = sample_logits(tuned, tokens)
        del tuned
        copied = replace(source, adapter=request.building, combine=CombineConfig())
        after = sample_logits(loading.load(copied, torch.float32, trust_remote_code=trust).eval(), tokens)
        return Comparison("float32", largest_difference(before, after), float(before.abs().max()))


def build(options: Options) -> Adapter:
    """The format."""
    return Adapter()
