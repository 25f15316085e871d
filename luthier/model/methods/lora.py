"""LoRA: low-rank updates beside frozen weights (Hu et al. 2021, https://arxiv.org/abs/2106.09685), by peft.

With use_rslora the update is scaled by alpha / sqrt(rank) (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732), with
use_dora its magnitude is learnt apart from its direction (Liu et al. 2024, https://arxiv.org/abs/2402.09353), with
lora_plus_ratio its second factor learns faster than its first (Hayou et al. 2024, https://arxiv.org/abs/2402.12354).
init: loftq starts from what quantization took from the weight (Li et al. 2023, https://arxiv.org/abs/2310.08659), init:
eva from the directions in which the run's rows vary (Paischer et al. 2024, https://arxiv.org/abs/2410.07170),
init: pissa from the weight's largest singular values (Meng et al. 2024, https://arxiv.org/abs/2404.02948), init:
olora from its QR decomposition (Buyukakyuz 2024, https://arxiv.org/abs/2406.01775).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.config.sections import MethodOptions
from luthier.foundation.errors import ModelError
from luthier.foundation.files import write_json
from luthier.model.inspection import MENDING
from luthier.model.method import Apply, trainable_to_float32
from luthier.model.methods._ends import learns_a_tied_end, token_rows
from luthier.model.methods._experts import exact_targets
from luthier.model.methods._peft_adapter import PeftMethod, read_adapter
from luthier.model.methods._targets import (
    ALL_LINEAR,
    TargetModules,
    check_rank,
    check_targets,
    exact_names,
    has_conv1d,
    named,
)
from luthier.model.quantization import is_quantized, quantized_layers

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

FROM_THE_WEIGHT = ("pissa", "pissa_niter_16", "olora")  # these take the start of the update out of the base's weight
ON_STACKS = ("default", "gaussian", "loftq")  # loftq starts those as default does: no stack is quantized


class Options(MethodOptions):
    """LoRA's settings, as in peft's LoraConfig."""

    name: str = "lora"
    rank: int = Field(8, ge=1, description="Rank of the update (peft: r).")
    alpha: float = Field(16, gt=0, description="The update is scaled by alpha / rank (peft: lora_alpha).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input (peft: lora_dropout).")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Which biases learn too.")
    target_modules: TargetModules = Field(
        ALL_LINEAR,
        description="Modules that get an update: all-linear (the head excepted), names, or a regular expression. A "
        "mixture of experts takes some otherwise, and a run says which get none: see docs/methods.md.",
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank).")
    use_dora: bool = Field(False, description="Learn magnitude and direction apart.")
    lora_plus_ratio: float = Field(
        1.0,
        ge=1,
        description="LoRA+: the second factor learns this many times as fast as learning_rate (16 in the paper); 1: off.",
    )
    init: Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora", "eva", "loftq"] = Field(
        "default",
        description="How the factors start: the second is zero with default, gaussian and eva, whose first is found in the "
        "run's rows; pissa (pissa_niter_16: faster, approximate) and olora start from the weight itself, loftq from what model.quantization took from it (peft: "
        "init_lora_weights).",
    )
    eva_rho: float = Field(
        2.0,
        ge=1,
        description="With init: eva, a layer may have up to this many times the rank, taken from layers whose inputs vary "
        "less; 1: every layer has the same.",
    )
    modules_to_save: list[str] = Field(
        default_factory=list,
        description="Further modules that learn whole, such as lm_head: names, or their last parts.",
    )

    recommended_learning_rate: ClassVar[float] = 2e-4
    in_adapter: ClassVar[Mapping[str, str]] = {
        "rank": "r",
        "alpha": "lora_alpha",
        "bias": "bias",
        "target_modules": "target_modules",
        "use_rslora": "use_rslora",
        "use_dora": "use_dora",
        "modules_to_save": "modules_to_save",
    }
    of_the_run: ClassVar[frozenset[str]] = frozenset({"dropout", "lora_plus_ratio"})

    @model_validator(mode="after")
    def _even_rank(self) -> Options:
        if self.init != "eva" and self.eva_rho != 2.0:
            raise ValueError(
                f"eva_rho is {self.eva_rho:g} but init is {self.init}, so it would not be read: set init to eva"
            )
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"init: orthogonal needs an even rank, found {self.rank}")
        return self


class Lora(PeftMethod):
    """Trains low-rank updates; saved in peft's format."""

    run_settings: ClassVar[tuple[str, ...]] = ("lora_dropout",)

    def __init__(self, options: Options) -> None:
        self.options: Options = options
        self._mends = False
        self._start: dict[str, Tensor] = {}  # both factors of every update as they were made, where the base gave them

    def check_tokens(self, how: Apply) -> None:
        """New rows of the embedding learn beside the updates."""

    @property
    def trains_inside(self) -> bool:
        """Biases of the base's own modules learn in them."""
        return self.options.bias != "none"

    @property
    def trains_parts(self) -> bool:
        """A bias beside its module's weight."""
        return self.trains_inside

    def quantized_problem(self) -> str:
        """Updates stand beside quantized weights, but can't be taken out of them."""
        if self.options.init in FROM_THE_WEIGHT:
            return f"method.init {self.options.init} takes the start of the update out of the base's weight, which is quantized"
        if self.options.init == "orthogonal":
            return (
                "method.init orthogonal makes both factors in the number type of the base's weight, which is quantized"
            )
        if self.options.bias != "none":
            return (
                f"method.bias {self.options.bias} trains biases of quantized layers, which bitsandbytes keeps in the "
                "precision of their products"
            )
        return ""

    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Put the updates beside the target modules.

        Raises:
            ModelError: target_modules or modules_to_save name something that the model does not have.
        """
        self._mends = self.options.init == "loftq" or (how.adapter is not None and (how.adapter / MENDING).is_file())
        tuned: Any = super().apply(model, how)
        if self.options.init not in ON_STACKS and (stacks := tuned.peft_config["default"].target_parameters):
            raise ModelError(
                f"method.init is {self.options.init}, which peft can't do beside the stacked experts and routers of "
                f"{type(model).__name__} ({', '.join(sorted(stacks))}).",
                "Leave method.init out, or leave the experts out of method.target_modules.",
            )
        begins = how.checkpoint is None or how.needs_start
        if self.options.init == "loftq" and begins and model.device.type != "meta":
            from luthier.model.loftq import start_from_the_error

            if how.base_folder is None:
                raise ModelError(
                    "init: loftq compares with the plain weights, and none are named here.", "Use another init."
                )
            start_from_the_error(tuned, how.base_folder)
        if tuned.peft_config["default"].init_lora_weights == "eva":
            from luthier.model.eva import start_from_activations

            if how.batches is None:
                raise ModelError("init: eva looks at the run's rows, and there are none here.", "Use another init.")

            start_from_activations(tuned, how.batches)
            trainable_to_float32(tuned, how.pure_bf16)
        if self.options.init in FROM_THE_WEIGHT:
            self._start = {name: value.clone() for name, value in _factors(tuned).items()}
        updates: nn.Module = tuned
        return updates

    def learning_rate_ratio(self, parameter: str) -> float:
        """LoRA+ (section 4 of its paper): only the second factor learns faster."""
        return self.options.lora_plus_ratio if ".lora_B." in parameter else 1.0

    def peft_config(self, model: PreTrainedModel, how: Apply) -> Any:
        """peft's LoraConfig for these options."""
        from peft import EvaConfig, LoraConfig

        own = self.options
        check_targets(model, own.target_modules, own.modules_to_save, embeddings=own.init not in FROM_THE_WEIGHT)
        self._check_rank(model)
        if own.init == "loftq" and not how.quantized:
            raise ModelError(
                "method.init is loftq, which mends the error of a quantized base, and this base is not quantized.",
                "Set model.quantization (nf4, int8), or leave method.init out.",
            )
        if how.quantized:
            refuse_learning_whole(model, own.modules_to_save)
        if own.init == "olora" and has_conv1d(model):
            raise ModelError(
                f"method.init is olora, which peft computes wrongly for the Conv1D layers of {type(model).__name__}.",
                "Use init: pissa.",
            )
        # the skeleton that names are checked on has no weights to decompose
        bare = own.init in ("default", "loftq") or model.device.type == "meta"
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=own.rank,
            lora_alpha=own.alpha,  # type: ignore[arg-type, unused-ignore]
            lora_dropout=own.dropout,
            bias=own.bias,
            target_modules=exact_targets(model, own.target_modules),
            use_rslora=own.use_rslora,
            use_dora=own.use_dora,
            init_lora_weights=True if bare else own.init,
            modules_to_save=exact_names(model, own.modules_to_save) or None,
            trainable_token_indices=token_rows(model, how, own.target_modules, own.modules_to_save),
            # a saved copy of a tied head or embedding stays tied, or the merged model would not be the trained one
            ensure_weight_tying=learns_a_tied_end(model, own.modules_to_save),
            fan_in_fan_out=has_conv1d(model),
            eva_config=EvaConfig(rho=own.eva_rho) if own.init == "eva" and not bare else None,
        )
        if own.init == "eva" and how.checkpoint is not None:
            from luthier.model.eva import found_before

            found_before(config, how.checkpoint)
        return config

    def continued_config(self, fresh: Any, folder: Path) -> Any:
        """The adapter's own, with the rows of the embedding and the head that this run adds to those it trained."""
        config = super().continued_config(fresh, folder)
        added: dict[str, list[int]] | None = fresh.trainable_token_indices
        if added:
            known = config.trainable_token_indices
            if not isinstance(known, dict):  # none, or other tools' list, which is of the embedding
                known = {next(iter(added)): known or []}
            config.trainable_token_indices = {
                name: list(dict.fromkeys([*known.get(name, []), *added.get(name, [])])) for name in {**known, **added}
            }
        return config

    def start_from(self, model: nn.Module, folder: Path) -> None:
        """Give fresh weights those of a finished adapter; rows that it did not train stay as they are made."""
        import torch
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        tensors = read_adapter(folder)
        for name, rows in get_peft_model_state_dict(model, save_embedding_layers=False).items():
            if name.endswith(".trainable_tokens_delta"):
                known = tensors.get(name, rows[:0]).to(rows)
                tensors[name] = torch.cat([known, rows[len(known) :]])
        set_peft_model_state_dict(model, tensors)

    def _check_rank(self, model: PreTrainedModel) -> None:
        own = self.options
        targets = own.target_modules
        if own.init in FROM_THE_WEIGHT:
            strict = f"init: {own.init} takes the update out of the weight, which has no more directions"
            check_rank(model, targets, own.rank, "method.rank", strict=strict)
        elif own.init == "eva":
            most = round(own.rank * own.eva_rho)
            strict = f"init: eva looks for rank x eva_rho = {most} directions in a layer's input"
            check_rank(model, targets, most, "method.rank x method.eva_rho", strict=strict)
        else:
            check_rank(model, targets, own.rank, "method.rank")

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the update for the base as it was.

        An update that started from the weight was taken out of it: what is written is the trained one minus the one it
        started as, an update of twice the rank that fits the untouched base (as peft converts PiSSA).
        """
        if self._mends:
            write_json(folder / MENDING, {"format_version": 1, "init": "loftq"})
        if not self._start:
            super().save(model, folder)
            return
        with _doubled(model, self._start):
            super().save(model, folder)

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put an adapter's weights back."""
        if not self._start:
            super().load(model, folder)
            return
        from peft import set_peft_model_state_dict

        rank = self.options.rank
        tensors = {
            name: value[:rank] if ".lora_A." in name else value[:, :rank] if ".lora_B." in name else value
            for name, value in read_adapter(folder).items()
        }
        set_peft_model_state_dict(model, tensors)


def refuse_learning_whole(model: PreTrainedModel, names: list[str]) -> None:
    """Raise ModelError for modules that should learn whole though their weights are quantized."""
    modules = dict(model.named_modules())
    layers = {name for name, module in modules.items() if is_quantized(module)} or set(quantized_layers(model))
    for name in names:
        chosen = [full for full in modules if named(full, name)]
        if any(layer == full or layer.startswith(f"{full}.") for full in chosen for layer in layers):
            raise ModelError(
                f"method.modules_to_save names {name}, whose weights are quantized and can't learn.",
                "Leave it out (head, embeddings and norms stay plain), or leave model.quantization out.",
            )


def _factors(model: nn.Module) -> dict[str, Tensor]:
    """Both factors of every update, by parameter name."""
    return {name: value.data for name, value in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


@contextmanager
def _doubled(model: Any, start: dict[str, Tensor]) -> Iterator[None]:
    """The model with updates B A - B0 A0, written as [B, -B0] [A; A0], and a config that says so."""
    import torch

    own = model.peft_config["default"]
    wide = copy.deepcopy(own)
    wide.r, wide.init_lora_weights = 2 * own.r, True
    wide.lora_alpha = own.lora_alpha * (2**0.5 if own.use_rslora else 2)  # the scale stays what it was
    trained = _factors(model)
    parameters = dict(model.named_parameters())
    model.peft_config["default"] = wide
    try:
        for name, value in trained.items():
            first, begun = ".lora_A." in name, start[name].to(value)  # the model may have moved since
            parameters[name].data = torch.cat([value, begun if first else -begun], dim=0 if first else 1)
        yield
    finally:
        model.peft_config["default"] = own
        for name, value in trained.items():
            parameters[name].data = value


def build(options: Options) -> Lora:
    """The method for these options."""
    return Lora(options)
