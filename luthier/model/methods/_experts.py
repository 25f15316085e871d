"""Target modules on a mixture of experts, whose experts' maps are stacked in weights of three dimensions.

peft 0.21.2 rewrites a LoRA's targets for the families that had a module for each expert before transformers 5 (Mixtral, Qwen3-MoE,
DeepSeek, GLM-4-MoE and their kin): of a regular expression it keeps the last parts of the names that it matches, and
gate_proj, up_proj and down_proj mean the stacked weights there, no longer modules of that name. Stacks of other families
(Qwen2-MoE, gpt-oss) get no update, nor those of any under another method than LoRA.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from luthier.foundation.errors import ModelError
from luthier.foundation.progress import say
from luthier.model.methods._targets import ALL_LINEAR, is_target

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def exact_targets(model: PreTrainedModel, targets: str | list[str]) -> str | list[str]:
    """A regular expression as the full names that it matches, where peft would take the same names in every layer."""
    if not isinstance(targets, str) or targets == ALL_LINEAR or not stacked_experts(model):
        return targets
    return [full for full, module in model.named_modules() if is_target(model, full, module, targets)]


def stacked_experts(model: nn.Module) -> set[str]:
    """Full names of the weights that hold a map of each expert."""
    return {
        f"{full}.{name}"
        for full, module in model.named_modules()
        if "expert" in f"{full} {type(module).__name__}".lower()
        for name, value in module.named_parameters(recurse=False)
        if value.ndim == 3
    }


def asked_updates(model: PreTrainedModel, targets: str | list[str]) -> set[str]:
    """Full names of the modules of a bare model that targets mean, and of stacked weights; none for a model without those."""
    stacked = stacked_experts(model)
    if not stacked:
        return set()
    meant = {full for full, module in model.named_modules() if is_target(model, full, module, targets)}
    return meant | stacked if targets == ALL_LINEAR else meant


def compare_updates(tuned: Any, asked: set[str], targets: str | list[str]) -> None:
    """Tell of what was asked and got no update.

    Args:
        tuned: peft's wrapper of the model that `asked_updates` looked at.

    Raises:
        ModelError: a regular expression, and updates on what it does not match.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    made, whole = set(), []
    model = tuned.get_base_model()
    for full, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            weight = getattr(module, "parameter_name", None)
            name = re.sub(r"(\.base_layer)+$", "", full)
            made.add(f"{name}.{weight}" if weight else name)
        elif isinstance(module, ModulesToSaveWrapper):
            whole.append(full)
    further = made - asked
    if asked and further and isinstance(targets, str) and targets != ALL_LINEAR:
        raise ModelError(
            f"method.target_modules is the expression {targets!r}, and peft would put updates on {_kinds(further)} of "
            f"{type(model).__name__} too, or instead: gate_proj, up_proj and down_proj mean the stacked experts to it.",
            "Leave these names out of the expression, or give a list of names, or all-linear.",
        )
    left = {name for name in asked - made if not any(f"{name}.".startswith(f"{full}.") for full in whole)}
    if left and tuned.device.type != "meta":
        say(f"method: {len(left)} of the target modules get no update, since peft puts none there: {_kinds(left)}")


def _kinds(names: set[str]) -> str:
    """Names with their layers' numbers left open."""
    return ", ".join(sorted({re.sub(r"\.\d+(?=\.)", ".*", name) for name in names}))
