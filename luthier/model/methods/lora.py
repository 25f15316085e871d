"""LoRA: low-rank updates beside frozen weights (Hu et al. 2021, https://arxiv.org/abs/2106.09685), by peft.

With use_rslora the update is scaled by alpha / sqrt(rank) (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732), with
use_dora its magnitude is learnt apart from its direction (Liu et al. 2024, https://arxiv.org/abs/2402.09353).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.config.sections import MethodOptions
from luthier.foundation.errors import ModelError
from luthier.model.method import Apply, trainable_to_float32
from luthier.model.quiet import quiet_peft

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Options(MethodOptions):
    """LoRA's settings, as in peft's LoraConfig."""

    name: str = "lora"
    rank: int = Field(8, ge=1, description="Rank of the update (peft: r).")
    alpha: float = Field(16, gt=0, description="The update is scaled by alpha / rank (peft: lora_alpha).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input (peft: lora_dropout).")
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Which biases learn too.")
    target_modules: str | Annotated[list[str], Field(min_length=1)] = Field(
        "all-linear",
        description="Modules that get an update: all-linear (the head excepted), names, or a regular expression.",
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(rank).")
    use_dora: bool = Field(False, description="Learn magnitude and direction apart.")
    init: Literal["default", "gaussian", "orthogonal"] = Field(
        "default",
        description="How the first factor starts (the second is zero, except with orthogonal; peft: init_lora_weights).",
    )
    modules_to_save: list[str] = Field(
        default_factory=list, description="Further modules that learn whole, such as lm_head."
    )

    recommended_learning_rate: ClassVar[float] = 2e-4

    @model_validator(mode="after")
    def _even_rank(self) -> Options:
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"init: orthogonal needs an even rank, found {self.rank}")
        return self


class Lora:
    """Trains low-rank updates; saved in peft's format."""

    saves: Literal["adapter"] = "adapter"

    def __init__(self, options: Options) -> None:
        self.options = options

    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Put the updates beside the target modules.

        Raises:
            ModelError: target_modules or modules_to_save name something that the model does not have.
        """
        import torch
        from peft import get_peft_model

        self._check_names(model)
        torch.manual_seed(how.seed)
        try:
            with quiet_peft():
                tuned: Any = get_peft_model(model, self._peft_config(model, how))
        except (ValueError, TypeError) as error:
            raise ModelError(
                f"peft can't put LoRA on {type(model).__name__} so: {error}", "Change the method's settings."
            ) from error
        tuned.peft_config["default"].base_model_name_or_path = how.base_name
        tuned.peft_config["default"].revision = how.revision
        trainable_to_float32(tuned, how.pure_bf16)
        peft_model: nn.Module = tuned
        return peft_model

    def _peft_config(self, model: PreTrainedModel, how: Apply) -> Any:
        from peft import LoraConfig
        from transformers.pytorch_utils import Conv1D

        own = self.options
        convolved = any(isinstance(module, Conv1D) for module in model.modules())
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=own.rank,
            lora_alpha=own.alpha,  # type: ignore[arg-type, unused-ignore]
            lora_dropout=own.dropout,
            bias=own.bias,
            target_modules=own.target_modules,
            use_rslora=own.use_rslora,
            use_dora=own.use_dora,
            init_lora_weights=True if own.init == "default" else own.init,
            modules_to_save=list(own.modules_to_save) or None,  # peft changes the list it is given
            trainable_token_indices=self._token_rows(model, how),
            # a saved copy of a tied head or embedding stays tied, or the merged model would not be the trained one
            ensure_weight_tying=bool(own.modules_to_save) and model.config.get_text_config().tie_word_embeddings,
            fan_in_fan_out=convolved,  # GPT-2's Conv1D keeps its weight transposed
        )

    def _token_rows(self, model: PreTrainedModel, how: Apply) -> dict[str, list[int]] | None:
        """New rows of the embedding, and of the head where it is not tied (peft follows the tie by itself)."""
        if not how.new_token_ids:
            return None
        tied = model.config.get_text_config().tie_word_embeddings
        modules = [model.get_input_embeddings()] + ([] if tied else [model.get_output_embeddings()])
        names = {id(module): name.split(".")[-1] for name, module in model.named_modules()}
        whole = set(self.options.modules_to_save)  # those learn every row anyway
        if tied and whole & {names[id(model.get_output_embeddings())], names[id(modules[0])]}:
            return None
        return {
            names[id(module)]: list(how.new_token_ids) for module in modules if names[id(module)] not in whole
        } or None

    def _check_names(self, model: PreTrainedModel) -> None:
        modules = dict(model.named_modules())
        targets = self.options.target_modules
        problems = [
            f"method.target_modules names {name!r}"
            for name in (targets if isinstance(targets, list) else [])
            if not any(_fits(modules[full]) for full in modules if full == name or full.endswith(f".{name}"))
        ]
        if isinstance(targets, str) and targets != "all-linear":
            try:
                pattern = re.compile(targets)
            except re.error as error:
                raise ModelError(
                    f"method.target_modules is the regular expression {targets!r}, which is broken: {error}.",
                    "Give a list of names, a valid expression, or all-linear.",
                ) from error
            matched = [full for full in modules if pattern.fullmatch(full)]
            if not matched or not all(_fits(modules[full]) for full in matched):
                problems.append(f"method.target_modules is the expression {targets!r}")
        self._refuse_tied_targets(model)
        problems += [
            f"method.modules_to_save names {name!r}"
            for name in self.options.modules_to_save
            if not any(full == name or full.endswith(f".{name}") for full in modules)
        ]
        if problems:
            raise ModelError(
                f"{'; '.join(problems)}, which matches no module of {type(model).__name__} that LoRA can stand beside.",
                f"Its linear modules are: {', '.join(sorted(_linear_kinds(model)))}; all-linear takes them all.",
            )

    def _refuse_tied_targets(self, model: PreTrainedModel) -> None:
        """An update beside one end of a tied weight: merging would put it into both ends, which is another model."""
        if not model.config.get_text_config().tie_word_embeddings:
            return
        ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
        targets = self.options.target_modules
        for full, module in model.named_modules():
            if id(module) not in ends or targets == "all-linear":  # which leaves both ends out
                continue
            named = (
                re.fullmatch(targets, full) is not None
                if isinstance(targets, str)
                else any(full == name or full.endswith(f".{name}") for name in targets)
            )
            if named:
                raise ModelError(
                    f"method.target_modules takes in {full}, which {type(model).__name__} ties to its other end: the update "
                    "would stand beside one of them only, and could not be merged.",
                    f"Put {full.split('.')[-1]} into method.modules_to_save, which keeps both ends tied.",
                )

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write adapter_model.safetensors and adapter_config.json."""
        # the base's embedding is never copied into the adapter: new rows are kept by trainable_token_indices
        model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put an adapter's weights back."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))


def _fits(module: nn.Module) -> bool:
    """Whether LoRA can stand beside a module."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, nn.Embedding, Conv1D))


def _linear_kinds(model: nn.Module) -> set[str]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return {
        name.split(".")[-1]
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not name.endswith("lm_head")
    }


def build(options: Options) -> Lora:
    """The method for these options."""
    return Lora(options)
