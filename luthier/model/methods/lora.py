"""LoRA: low-rank updates beside frozen weights (Hu et al. 2021, https://arxiv.org/abs/2106.09685), by peft.

With use_rslora the update is scaled by alpha / sqrt(rank) (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732), with
use_dora its magnitude is learnt apart from its direction (Liu et al. 2024, https://arxiv.org/abs/2402.09353).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.config.schema import MethodOptions
from luthier.foundation.errors import ModelError
from luthier.model.method import Apply, quiet_peft, trainable_to_float32

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
    target_modules: str | list[str] = Field(
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
        with quiet_peft():
            tuned: Any = get_peft_model(model, self._peft_config(model, how))
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
            modules_to_save=own.modules_to_save or None,
            trainable_token_indices=self._token_rows(model, how),
            # a saved copy of a tied head or embedding stays tied, or the merged model would not be the trained one
            ensure_weight_tying=bool(own.modules_to_save) and model.config.get_text_config().tie_word_embeddings,
            fan_in_fan_out=convolved,  # GPT-2's Conv1D keeps its weight transposed
        )

    @staticmethod
    def _token_rows(model: PreTrainedModel, how: Apply) -> dict[str, list[int]] | None:
        """New rows of the embedding, and of the head where it is not tied (peft follows the tie by itself)."""
        if not how.new_token_ids:
            return None
        rows = list(how.new_token_ids)
        wanted = [model.get_input_embeddings()]
        if not model.config.get_text_config().tie_word_embeddings:
            wanted.append(model.get_output_embeddings())
        names = {id(module): name for name, module in model.named_modules()}
        return {names[id(module)].split(".")[-1]: rows for module in wanted}

    def _check_names(self, model: PreTrainedModel) -> None:
        import re

        names = [name for name, _ in model.named_modules()]
        kinds = sorted(_linear_kinds(model))
        targets = self.options.target_modules
        problems = []
        for name in targets if isinstance(targets, list) else []:
            if not any(full == name or full.endswith(f".{name}") for full in names):
                problems.append(f"method.target_modules names {name!r}")
        if isinstance(targets, str) and targets != "all-linear":
            try:
                pattern = re.compile(targets)
            except re.error as error:
                raise ModelError(
                    f"method.target_modules is the regular expression {targets!r}, which is broken: {error}.",
                    "Give a list of names, a valid expression, or all-linear.",
                ) from error
            if not any(pattern.fullmatch(full) for full in names):
                problems.append(f"method.target_modules is the expression {targets!r}")
        for name in self.options.modules_to_save:
            if not any(full == name or full.endswith(f".{name}") for full in names):
                problems.append(f"method.modules_to_save names {name!r}")
        if problems:
            raise ModelError(
                f"{'; '.join(problems)}, which matches no module of {type(model).__name__}.",
                f"Its linear modules are: {', '.join(kinds)}; all-linear takes them all.",
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
