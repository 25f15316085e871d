"""The rules for the optimizer and the learning rate's schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from luthier.config.migration import asking
from luthier.config.migration.answers import Answer, Case, changed, mapped, refused
from luthier.config.optimizer_names import TRANSFORMERS_OPTIMIZERS
from luthier.config.plugins import OPTIMIZERS

SWITCHES = {
    "use_galore": "galore",
    "use_apollo": "apollo",
    "use_badam": "badam",
    "use_adam_mini": "adam_mini",
    "use_muon": "muon",
}
_UNPAGED = "its state is not paged out to the processor's memory"
_AFTERWARDS = "all layers are updated after the whole backward pass"
_FLOAT32 = "its momentum is kept in float32, four times the bytes"
# what luthier's optimizer of another name does otherwise
OTHER_OPTIMIZERS = {
    **dict.fromkeys(("paged_adamw", "paged_adamw_32bit", "paged_lion_32bit"), _UNPAGED),
    "lion_8bit": _FLOAT32,
    "paged_lion_8bit": f"{_FLOAT32}, and not paged out to the processor's memory",
    **dict.fromkeys(("galore_adamw_layerwise", "apollo_adamw_layerwise"), _AFTERWARDS),
    **dict.fromkeys(("schedule_free_radam", "schedule_free_sgd"), "schedule_free has an AdamW inside"),
    "adamw_anyprecision": "its moments have the precision of the weights",
    "stable_adamw": "updates are not clipped by their size; training.max_grad_norm clips gradients",
}


def optim(case: Case, key: str, value: Any) -> Answer:
    """The optimizer, by transformers' name or one of LLaMA-Factory's switches."""
    chosen = [switch for switch in SWITCHES if case.value(switch)]
    if key != "optim":
        if value and chosen[0] != key:
            return mapped(note=f"without effect, as there: {chosen[0]} goes before it")
        return mapped({"training.optim": SWITCHES[key]} if value else {})
    if chosen:
        return mapped(note=f"{chosen[0]} chooses the optimizer")
    settings: dict[str, Any] = {"training.optim": TRANSFORMERS_OPTIMIZERS.get(value, value)}
    if value == "paged_adamw_8bit":
        settings["training.optim.paged"] = True
        return mapped(settings, "only CUDA pages: set it to false to train without")
    difference = OTHER_OPTIMIZERS.get(value)
    return changed(settings, difference) if difference else mapped(settings)


def adam(case: Case, key: str, value: Any) -> Answer:
    """Adam's betas and epsilon, which some optimizers take under other names, and others not at all."""
    switch = next((switch for switch in SWITCHES if case.value(switch)), None)
    given = str(case.value("optim"))
    name = SWITCHES[switch] if switch else TRANSFORMERS_OPTIMIZERS.get(given, given)
    if name not in OPTIMIZERS.names() or key in OPTIMIZERS.load(name).Options.reads:
        return mapped({f"training.{key}": value})
    own = key.removeprefix("adam_")
    if own in OPTIMIZERS.load(name).Options.model_fields:
        return mapped({f"training.optim.{own}": value})
    return mapped(note=f"without effect, as there: the optimizer is {switch or given}")


def schedule_settings(case: Case, key: str, value: Any) -> Answer:
    """What a shape of the learning rate takes besides."""
    shape = case.value("lr_scheduler_type")
    if not value:
        return mapped()
    if asking.refusal("training.lr_scheduler_type", shape, {}) is not None:
        return refused(f"they are settings of the schedule {shape}, which luthier does not have")
    return mapped({"training.lr_scheduler_kwargs": value})


def warmup(case: Case, key: str, value: Any) -> Answer:
    """Warm-up in steps or as a share of all; steps go before the share."""
    if case.value("lr_scheduler_type") == "constant":
        return mapped(note="the schedule constant has no warm-up") if value else mapped()
    if key == "warmup_ratio" and case.value("warmup_steps"):
        return mapped(note="warmup_steps goes before it")
    return mapped({"training.warmup_steps": value} if value or key == "warmup_steps" else {})


Rule = Callable[[Case, str, Any], Answer]
OPTIMIZER_RULES: Mapping[str, Rule] = {rule.__name__: rule for rule in (optim, adam, schedule_settings, warmup)}
