"""EVA: LoRA's first factors start as the directions in which the run's own rows vary most (Paischer et al. 2024,
https://arxiv.org/abs/2410.07170), by peft's incremental SVD of the layers' inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from luthier.foundation.errors import ModelError
from luthier.foundation.files import read_json
from luthier.model.inspection import ADAPTER_CONFIG
from luthier.model.method import CalibrationBatches

MOST_PASSES = 2000  # forward passes before the search is given up
FOUND = ("rank_pattern", "alpha_pattern", "target_modules")  # what of peft's config the search decides


def start_from_activations(model: Any, batches: CalibrationBatches) -> None:
    """Give a fresh LoRA of peft's, made with init_lora_weights eva, its first factors and ranks.

    Its config then says what was found, so that the saved adapter is a plain LoRA.

    Args:
        batches: padded rows with at least so many trained tokens each; the same on every rank.

    Raises:
        ModelError: too few rows, or directions that do not settle.
    """
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    config = model.peft_config["default"]
    rows = batches(round(config.r * config.eva_config.rho))
    passes = 0

    def forward(tuned: Any, inputs: Mapping[str, Tensor]) -> None:
        nonlocal passes
        passes += 1
        if passes > MOST_PASSES:
            raise ModelError(
                f"method.init eva found no steady directions in {MOST_PASSES} batches of the run's rows.",
                "Lower method.rank or method.eva_rho, or give more rows.",
            )
        # no logits are wanted
        backbone = tuned.get_base_model().base_model
        backbone(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)

    training = model.training
    initialize_lora_eva_weights(
        model,
        [dict(batch) for batch in rows],
        forward_fn=forward,
        gather_distributed_inputs=False,
        show_progress_bar=False,
    )
    model.train(training)
    config = model.peft_config["default"]
    config.init_lora_weights, config.eva_config = True, None


def found_before(config: Any, checkpoint: Path) -> None:
    """Let a config make what a run's search had found, which its checkpoint says: the weights come from there too."""
    saved = read_json(checkpoint / ADAPTER_CONFIG)
    for name in FOUND:
        setattr(config, name, saved[name])
    config.target_modules = (
        set(saved["target_modules"]) if isinstance(saved["target_modules"], list) else saved["target_modules"]
    )
    config.init_lora_weights, config.eva_config = True, None
