"""Heads that give a whole sequence some numbers, one for each class or one alone, as transformers'
`...ForSequenceClassification` has them.

A whole model keeps what its head means in config.json, as transformers does. peft's format has no place for it, so an adapter
keeps it in head.json, whose keys are those of transformers' config. Two are ours, in either: label_mean and label_scale, of
a regression whose labels were standardised.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.foundation.errors import ModelError
from luthier.foundation.files import read_json, write_json

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

HEAD_FILE = "head.json"
HEAD_WEIGHTS = "head.safetensors"  # beside an adapter of ours; peft's and whole models hold it among their weights
PEFTS_OWN = ("classifier", "score")  # modules that peft itself counts to a head
IN_PROMPTS = "base_model."  # before the head's names in an adapter of virtual tokens
ENDING = "ForSequenceClassification"


@dataclass(frozen=True, slots=True)
class SequenceHead:
    """A head that gives a sequence some numbers.

    Args:
        problem: what they mean, by transformers' names.
        labels: the classes, in the order of their numbers; of a regression none: its head gives one number.
        mean, scale: what stands for a regression's number y is (y - mean) / scale.
    """

    problem: Literal["single_label_classification", "multi_label_classification", "regression"]
    labels: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0

    @property
    def outputs(self) -> int:
        """How many numbers it gives."""
        return len(self.labels) or 1

    def settings(self) -> dict[str, Any]:
        """What transformers' config says of it; JSON but for the numbers that are keys."""
        names = self.labels or ("LABEL_0",)
        unit = {"label_mean": self.mean, "label_scale": self.scale} if (self.mean, self.scale) != (0, 1) else {}
        return unit | {
            "num_labels": self.outputs,
            "problem_type": self.problem,
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
        }


def with_head(config: PreTrainedConfig, head: SequenceHead) -> PreTrainedConfig:
    """A model's config with a head.

    Raises:
        ModelError: transformers has no such model of this kind.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"transformers has no model of the kind {config.model_type} with a head for classification.",
            "Choose another model, or stage.head: generative, where label words are answered.",
        )
    changed = copy.deepcopy(config)
    for name, value in head.settings().items():
        setattr(changed, name, value)
    return changed


def saved_head(*folders: Path | None) -> SequenceHead | None:
    """The head that the first of the folders with one says it has; None where there is none."""
    for folder in folders:
        if folder is None:
            continue
        if (folder / HEAD_FILE).is_file():
            return _read(read_json(folder / HEAD_FILE))
        if (folder / "config.json").is_file():
            config = read_json(folder / "config.json")
            if any(str(name).endswith(ENDING) for name in config.get("architectures") or ()):
                return _read(config)
    return None


def _read(settings: dict[str, Any]) -> SequenceHead:
    names = settings.get("id2label") or {}
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    problem: Any = settings.get("problem_type") or ("regression" if len(labels) == 1 else "single_label_classification")
    if problem == "regression":
        return SequenceHead(problem, (), settings.get("label_mean", 0.0), settings.get("label_scale", 1.0))
    return SequenceHead(problem, labels)


def head_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules of a model with a head that learn whole, by dotted name: all that stand beside its backbone, and the
    backbone's own pooler, which hands the head a sequence's first state (BERT and its kin). Others, such as DeBERTa, have
    theirs beside the backbone; and one that was trained on masked words alone comes without it."""
    backbone = dict(model.named_children()).get(model.base_model_prefix)
    found = {name: module for name, module in model.named_children() if module is not backbone}
    pooler = getattr(backbone, "pooler", None)
    if pooler is not None:
        found[f"{model.base_model_prefix}.pooler"] = pooler
    return {name: module for name, module in found.items() if any(True for _ in module.parameters())}


def in_sequence_head(model: Any, name: str) -> bool:
    """Whether a module, by its dotted name, is of a head that classifies: it learns whole, and no update stands beside it."""
    return type(model).__name__.endswith(ENDING) and any(
        f"{name}.".startswith(f"{own}.") for own in head_modules(model)
    )


def train_head(model: PreTrainedModel, pure_bf16: bool) -> None:
    """Let the whole head learn: it starts at random. With an adapter of peft's it does so already (`save_with_adapter`)."""
    import torch

    from luthier.model.mixed_precision import read_any_precision

    for module in head_modules(model).values():
        module.to(torch.bfloat16 if pure_bf16 else torch.float32).requires_grad_(True)
        read_any_precision(module)


def save_with_adapter(config: Any, model: PreTrainedModel) -> None:
    """Have peft train a whole head and keep it among an adapter's weights: by itself it does so for modules named
    classifier and score alone, and leaves a pooler before them at random, frozen and unsaved.

    Args:
        config: peft's, which is changed.
    """
    config.task_type = "SEQ_CLS"
    asked = list(config.modules_to_save or ())
    config.modules_to_save = asked + [name for name in head_modules(model) if name not in (*asked, *PEFTS_OWN)]


def save_head(head: SequenceHead, model: Any, folder: Path) -> None:
    """Write beside an adapter what its head means, and its weights, where peft does not."""
    from safetensors.torch import save_file

    write_json(folder / HEAD_FILE, {**head.settings(), "pad_token_id": model.config.get_text_config().pad_token_id})
    if not hasattr(model, "peft_config"):
        tensors = {
            f"{name}.{key}": value.detach().cpu().contiguous()
            for name, module in head_modules(model).items()
            for key, value in module.state_dict().items()
        }
        save_file(tensors, folder / HEAD_WEIGHTS, metadata={"format": "pt"})


def look_past_padding(model: Any, folder: Path | None) -> None:
    """Have transformers' head read each row before the token that an adapter's run padded with: the base's config may name
    another or none, and a head that knows none takes one row at a time, or reads what pads.

    Args:
        folder: the adapter's; where no head stands beside it, the config stays as it is.
    """
    if folder is not None and (folder / HEAD_FILE).is_file():
        model.config.get_text_config().pad_token_id = read_json(folder / HEAD_FILE).get("pad_token_id")


def load_head(model: Any, folder: Path) -> None:
    """Put a head's weights back where the method does not: those that `save_head` wrote, and those beside virtual tokens,
    of which a checkpoint's encoder alone is loaded."""
    from safetensors.torch import load_file

    if (folder / HEAD_WEIGHTS).is_file():
        model.load_state_dict(load_file(folder / HEAD_WEIGHTS), strict=False)
    elif hasattr(model, "peft_config") and model.active_peft_config.is_prompt_learning:
        saved = load_file(folder / "adapter_model.safetensors")
        for name, module in head_modules(model.get_base_model()).items():
            own = f"{IN_PROMPTS}{name}."
            state = {key.removeprefix(own): value for key, value in saved.items() if key.startswith(own)}
            if state:  # a language model's head is the base's own
                trained: Any = module.modules_to_save
                trained["default"].load_state_dict(state)


def head_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the head's tensors as peft writes them beside virtual tokens."""
    return {
        f"{IN_PROMPTS}{name}.{key}": tuple(value.shape)
        for name, module in head_modules(model).items()
        for key, value in module.state_dict().items()
    }
