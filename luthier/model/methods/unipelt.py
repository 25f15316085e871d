"""UniPELT: LoRA, a prefix and bottleneck adapters at once, each with a gate that learns how much it counts (Mao et al.
2022, https://arxiv.org/abs/2110.07577).

The gates of LoRA and of the adapters are the paper's (equation 4: a sigmoid of the input), one for every token. The
prefix's gate is one number a layer: in a decoder its keys and values are the same for every token, and a gate made from
the whole input would let a token see those after it.

Saved like `adapter`, in luthier's own format; the prefix is saved with its gates multiplied in.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.model.methods import adapter
from luthier.model.methods._combination import Combination, CombinedOptions
from luthier.model.methods._own_adapter import read_options
from luthier.model.methods._targets import QUERY_VALUE, check_rank, check_targets, is_linear, named, present, widths_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Options(CombinedOptions):
    """Each part's size; the defaults are the paper's."""

    name: str = "unipelt"
    num_virtual_tokens: int = Field(10, ge=1, description="Learnt keys and values before every row.")
    rank: int = Field(8, ge=1, description="Rank of the updates.")
    alpha: float = Field(16, gt=0, description="The updates are scaled by alpha / rank, times their gate.")
    target_modules: list[str] = Field(
        default_factory=list,
        description="Linear modules that get an update; empty: the family's projections of queries and values.",
    )
    reduction_factor: float = Field(16, ge=1, description="The model's hidden size divided by the bottleneck's width.")
    activation: adapter.Activation = Field("relu", description="Between the bottleneck's two linear maps.")

    recommended_learning_rate: ClassVar[float] = 5e-4  # as in the paper


class UniPelt(Combination):
    """Trains three parts and their gates."""

    options: Options
    gated: ClassVar[bool] = True

    def hang(self, model: PreTrainedModel) -> None:
        """Gated bottlenecks after every feed-forward block, gated updates beside the target modules."""
        from luthier.model.bottleneck import Bottleneck, hang_on

        own = self.options
        targets = own.target_modules or present(model, QUERY_VALUE, "projections of queries and values")
        check_targets(model, targets, [], embeddings=False)
        check_rank(model, targets, own.rank, "method.rank")
        chosen = [
            module
            for full, module in model.named_modules()
            if is_linear(module) and any(named(full, name) for name in targets)
        ]
        shape = {"reduction_factor": own.reduction_factor, "activation": own.activation}
        adapter.hang(model, adapter.Options(placement="pfeiffer", **shape), gated=True)
        for module in chosen:
            inputs, outputs = widths_of(module)
            scale = own.alpha / own.rank
            update = Bottleneck(inputs, own.rank, outputs, "linear", scale, parallel=True, bias=False, gated=True)
            hang_on(module, update)


def attach(model: PreTrainedModel, folder: Path) -> Any:
    """A base model with the saved parts in it, for use."""
    return UniPelt(Options(**read_options(folder))).attach(model, folder)


def shapes(model: PreTrainedModel, folder: Path) -> dict[str, tuple[int, ...]]:
    """What a saved adapter of these options holds for a model (without weights), which it changes."""
    return UniPelt(Options(**read_options(folder))).shapes(model)


def build(options: Options) -> UniPelt:
    """The method for these options."""
    return UniPelt(options)
