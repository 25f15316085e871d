"""The README.md beside a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from luthier.config.loading import dump_yaml
from luthier.config.plugins import METHODS
from luthier.config.schema import ModelConfig, RunConfig

if TYPE_CHECKING:
    from transformers import TrainerState


def changes_of_the_base(model: ModelConfig) -> list[str]:
    """What was done to the base before it was trained, a line each."""
    lines = []
    if model.from_scratch:
        lines.append("- weights: random at the start, of the base's kind; its own were not used")
    if model.config_overrides:
        changes = ", ".join(f"{key}: {value}" for key, value in model.config_overrides.items())
        lines.append(f"- changed in the base's config: {changes}")
    if model.rope_scaling is not None:
        given = ", ".join(f"{key}: {value}" for key, value in model.rope_scaling.model_dump(exclude_none=True).items())
        lines.append(f"- positions stretched (rope scaling): {given}")
    if model.adapters:
        under = ", ".join(f"`{entry.path}`" for entry in model.adapters)
        lines.append(f"- adapters on the base: {under}")
    if model.quantization is not None:
        lines.append(f"- base quantized while it was trained: {model.quantization}")
    return lines


def model_card(config: RunConfig, base: str, state: TrainerState) -> str:
    """What the model is made of and how: base, data, settings, losses."""
    losses = [line["loss"] for line in state.log_history if "loss" in line]
    evaluated = [line["eval_loss"] for line in state.log_history if "eval_loss" in line]
    saves = METHODS.load(config.method.name).build(config.method).saves
    local = Path(base).is_absolute()
    facts = [
        f"- base model: `{config.model.name if local else base}`",
        f"- stage and method: {config.stage.name}, {config.method.name}",
        f"- data: {', '.join(f'`{entry.path}`' for entry in config.data.train)}",
        f"- steps: {state.global_step}",
    ]
    facts[1:1] = changes_of_the_base(config.model)
    if losses:
        facts.append(f"- training loss: {losses[0]:.4f} at the first line, {losses[-1]:.4f} at the last")
    if evaluated:
        facts.append(f"- evaluation loss: {evaluated[0]:.4f} at first, {evaluated[-1]:.4f} at last")
    header = ["---", "library_name: peft" if saves == "adapter" else "library_name: transformers"]
    if not local:
        header.append(f"base_model: {base}")  # a hub id; a path on this machine would mean nothing elsewhere
    return "\n".join(
        [
            *header,
            "tags: [luthier]",
            "---",
            "",
            f"# {Path(config.output_dir).name}",
            "",
            *facts,
            "",
            "## Config",
            "",
            "```yaml",
            dump_yaml(config).rstrip(),
            "```",
            "",
        ]
    )
