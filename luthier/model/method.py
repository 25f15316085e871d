"""What every training method is: a way to mark or add trainable weights, and a folder format for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.foundation.errors import ModelError
from luthier.model.heads import SequenceHead
from luthier.model.quiet import quiet_bars

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from luthier.config.sections import MethodOptions


CalibrationBatches = Callable[[int], "Sequence[Mapping[str, Tensor]]"]


@dataclass(frozen=True, slots=True)
class Apply:
    """What a method is told besides its own options.

    Args:
        seed: torch's seed immediately before new weights are made, so that they equal peft's own.
        new_token_ids: embedding rows that were added for this run and must be trained.
        base_name: what an adapter names as its base: a hub id, or the folder's path.
        revision: the base's revision on its hub.
        pure_bf16: keep trainable weights in bfloat16.
        total_steps: optimizer steps of the run, for methods that follow a schedule.
        tokenizer: for methods that read a text of the user's.
        adapter: an adapter of this method, whose weights the trained ones start from.
        head: the model has this head, which learns whatever the method trains; None: it is a language model.
        batches: the run's own rows, padded, for methods that look at activations before the first step; asked for with the
            trained tokens that each batch needs. Every rank gets the same. None where there are no weights yet.
        base_folder: where the weights were read from.
        checkpoint: what the run goes on from: it is put back after `apply`, which need not find again what it holds.
        needs_start: the model as it stands before the first step is read, also where a run goes on: a start that changes what
            it computes is made all the same.
        quantized: the linear layers' weights are in 4 or 8 bits, or will be once they are read.
    """

    seed: int
    new_token_ids: Sequence[int] = ()
    base_name: str = ""
    revision: str | None = None
    pure_bf16: bool = False
    total_steps: int = 100
    tokenizer: PreTrainedTokenizerBase | None = None
    adapter: Path | None = None
    head: SequenceHead | None = None
    batches: CalibrationBatches | None = None
    base_folder: Path | None = None
    checkpoint: Path | None = None
    needs_start: bool = False
    quantized: bool = False


METHOD_STATE = "method_state.safetensors"


class Method(ABC):
    """A training method.

    `saves` says what its folder holds: "model" (all weights, loads in plain transformers) or "adapter" (loads on top of
    the base). What most methods have no need of has an answer here.
    """

    options: MethodOptions
    saves: Literal["model", "adapter"]

    @abstractmethod
    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Mark or add what is trained; returns the model to train. Raises ModelError for names that match nothing."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the trained weights into an existing folder; safetensors and JSON only."""

    @abstractmethod
    def load(self, model: nn.Module, folder: Path) -> None:
        """Put the weights of a checkpoint back into a model that `apply` made, to the same bits."""

    @property
    def trains_inside(self) -> bool:
        """Whether what it trains are weights of the base itself: unless autocast casts them, all must be of one precision."""
        return self.saves == "model"

    @property
    def trains_parts(self) -> bool:
        """Whether one module may have trained weights beside frozen ones."""
        return False

    def needs_float32(self, autocast: bool, device: str) -> bool:
        """Whether frozen weights must be float32, as trained ones are: without autocast they can't be multiplied with the
        same activations; with it a norm's weight and bias still must be alike, but on CUDA devices, where it casts them.

        Args:
            device: its kind, such as cuda.
        """
        return (self.trains_inside and not autocast) or (self.trains_parts and device != "cuda")

    def quantized_problem(self) -> str:
        """Why the method can't train beside weights in 4 or 8 bits, as its options stand; empty if it can."""
        if self.saves == "model":
            return f"method {self.options.name} trains the base's own weights, and a quantized one can't learn"
        return ""

    def state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """What going on needs and the saved model does not hold: an encoder that is left out of it, running means."""
        return {}

    def learning_rate_ratio(self, parameter: str) -> float:
        """How many times the learning rate a parameter learns with, by its name."""
        return 1.0

    def callbacks(self, model: nn.Module) -> list[TrainerCallback]:
        """What the method does during training."""
        return []

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A scalar that is added to every step's loss."""
        return None


def save_for_resuming(method: Method, model: nn.Module, folder: Path) -> None:
    """Write the method's state beside what `save` wrote."""
    from safetensors.torch import save_file

    state = method.state(model)
    if state:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / METHOD_STATE)


def refuse_new_tokens(name: str, how: Apply) -> None:
    """Raise ModelError for a method that can't train the embedding rows which a run added."""
    if how.new_token_ids:
        raise ModelError(
            f"this run adds {len(how.new_token_ids)} tokens to the vocabulary, whose embedding rows must learn, and method "
            f"{name} does not train embeddings.",
            "Use method: lora, or a data.template whose special tokens the tokenizer has.",
        )


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Trainable and all parameters; a tied weight counts once."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable share, 0 to 1."""
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({self.share:.2%})"


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's parameters; two weights of four bits that share a byte are two."""
    counts = [(_weights_in(p), p.requires_grad) for p in model.parameters()]
    return ParameterCount(sum(n for n, trained in counts if trained), sum(n for n, _ in counts))


def _weights_in(parameter: Tensor) -> int:
    packed = getattr(parameter, "quant_state", None)  # bitsandbytes' 4 bits
    return parameter.numel() if packed is None else int(packed.shape.numel())


def trainable_to_float32(model: nn.Module, pure_bf16: bool) -> None:
    """Trainable weights in float32 (small updates vanish in 16 bits), or all of them in bfloat16 on request."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16 if pure_bf16 else torch.float32)


def save_whole_model(model: Any, folder: Path) -> None:
    """Write a transformers model as safetensors shards of at most 5 GB."""
    with quiet_bars():
        model.save_pretrained(folder, max_shard_size="5GB")


def load_whole_model(model: Any, folder: Path) -> None:
    """Put a saved model's weights into one that is already there; each keeps its own precision."""
    import torch

    # by way of transformers' own loading, since some families rename weights between memory and disk; float32 holds
    # the 16-bit ones exactly
    with quiet_bars():
        saved = type(model).from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(saved.state_dict())
