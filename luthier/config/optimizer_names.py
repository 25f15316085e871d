"""The names that transformers (OptimizerNames) and LLaMA-Factory have for optimizers, with luthier's for each."""

from __future__ import annotations

TRANSFORMERS_OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused", "adamw"), "adamw"),
    **dict.fromkeys(("adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision", "stable_adamw"), "adamw"),
    **dict.fromkeys(("paged_adamw", "paged_adamw_32bit"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), "adamw8bit"),
    **dict.fromkeys(("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit"), "lion"),
    **dict.fromkeys(("galore_adamw", "galore_adamw_layerwise"), "galore"),
    **dict.fromkeys(("apollo_adamw", "apollo_adamw_layerwise"), "apollo"),
    **dict.fromkeys(("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"), "schedule_free"),
}
