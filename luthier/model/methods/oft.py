"""OFT: weights are turned by learnt block-diagonal rotations, which keep the angles between neurons (Qiu et al. 2023,
https://arxiv.org/abs/2306.07280; v2 with inputs rotated: Qiu et al. 2025, https://arxiv.org/abs/2506.19847), by peft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.config.sections import MethodOptions
from luthier.foundation.errors import ModelError
from luthier.foundation.progress import say
from luthier.model.method import Apply
from luthier.model.methods._peft_adapter import PeftMethod
from luthier.model.methods._targets import ALL_LINEAR, TargetModules, check_targets, has_conv1d

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Options(MethodOptions):
    """OFT's settings, as in peft's OFTConfig."""

    name: str = "oft"
    block_size: int = Field(
        32,
        ge=2,
        description="Width of a rotation (peft: oft_block_size); where a layer's width is no multiple of it, the nearest "
        "that divides it is taken.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of rotations left out in a step (peft: module_dropout).")
    block_share: bool = Field(False, description="One rotation for all blocks of a layer.")
    exact: bool = Field(
        False,
        description="Compute rotations exactly by Cayley's formula; else by five terms of its Neumann series, which is faster "
        "(peft: use_cayley_neumann).",
    )
    target_modules: TargetModules = Field(
        ALL_LINEAR,
        description="Modules that are rotated: all-linear (the head excepted), names, or a regular expression.",
    )

    recommended_learning_rate: ClassVar[float] = 4e-4  # twice to four times LoRA's, as the v2 paper has it
    in_adapter: ClassVar[Mapping[str, str]] = {
        "block_size": "oft_block_size",
        "block_share": "block_share",
        "target_modules": "target_modules",
    }
    of_the_run: ClassVar[frozenset[str]] = frozenset({"dropout"})

    @classmethod
    def of_adapter(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """peft says it the other way round: whether the rotations are computed by the series."""
        return super().of_adapter(settings) | {"exact": not settings.get("use_cayley_neumann", True)}


class OFT(PeftMethod):
    """Trains rotations, which start as the identity; saved in peft's format."""

    run_settings: ClassVar[tuple[str, ...]] = ("module_dropout",)

    def __init__(self, options: Options) -> None:
        self.options: Options = options

    def peft_config(self, model: PreTrainedModel, how: Apply) -> Any:
        """peft's OFTConfig for these options.

        Raises:
            ModelError: names that match nothing, or GPT-2's Conv1D, which peft's OFT does not know.
        """
        from peft import OFTConfig

        own = self.options
        if has_conv1d(model):
            raise ModelError(
                f"oft can't be put on {type(model).__name__}: peft's OFT does not know its Conv1D layers.",
                "Use method: lora, ia3 or vera.",
            )
        check_targets(model, own.target_modules, [], embeddings=False)
        return OFTConfig(
            task_type="CAUSAL_LM",
            oft_block_size=own.block_size,
            module_dropout=own.dropout,
            block_share=own.block_share,
            use_cayley_neumann=not own.exact,
            target_modules=own.target_modules,
        )

    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Put the rotations on the target modules.

        Raises:
            ModelError: as `PeftMethod.apply`, or a model with Conv1D layers.
        """
        tuned = super().apply(model, how)
        others: set[int] = set()
        for module in tuned.modules():
            sizes: Any = getattr(module, "oft_block_size", {})
            others |= {int(size) for size in sizes.values()} - {self.options.block_size}
        if others and model.device.type != "meta":
            say(
                f"method: layers whose width is no multiple of block_size {self.options.block_size} have blocks of "
                f"{', '.join(map(str, sorted(others)))}"
            )
        return tuned


def build(options: Options) -> OFT:
    """The method for these options."""
    return OFT(options)
