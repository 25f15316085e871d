"""Which modules of a model a method stands beside: names checked, and a family's own names found."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from luthier.foundation.errors import ModelError
from luthier.foundation.progress import say
from luthier.model.heads import in_sequence_head

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
TargetModules = str | Annotated[list[str], Field(min_length=1)]

# the projections that make queries and values, those that make keys and values, and the feed-forward's last one, as the families name them
QUERY_VALUE = ("q_proj", "v_proj", "query_key_value", "c_attn", "W_pack", "qkv_proj", "Wqkv", "query", "value")
KEY_VALUE = ("k_proj", "v_proj", "query_key_value", "c_attn", "W_pack", "qkv_proj", "Wqkv", "key", "value")
FEED_FORWARD_OUT = (
    "down_proj", "dense_4h_to_h", "mlp.c_proj", "fc2", "fc_out", "mlp.dense_4h_to_h", "w2", "wo", "out_proj_ffn",
    "output.dense",  # BERT's, and that of its attention, as in peft's own mapping
)  # fmt: skip


def check_targets(
    model: PreTrainedModel, targets: str | list[str], modules_to_save: list[str], *, embeddings: bool
) -> None:
    """Refuse names that match nothing, or something that the method can't stand beside.

    Args:
        embeddings: whether an embedding may be a target too.

    Raises:
        ModelError: with the names there are.
    """
    modules = dict(model.named_modules())
    problems = [
        f"method.target_modules names {name!r}"
        for name in (targets if isinstance(targets, list) else [])
        if not any(fits(modules[full], embeddings) for full in modules if named(full, name))
    ]
    if isinstance(targets, str) and targets != ALL_LINEAR:
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise ModelError(
                f"method.target_modules is the regular expression {targets!r}, which is broken: {error}.",
                "Give a list of names, a valid expression, or all-linear.",
            ) from error
        matched = [full for full in modules if pattern.fullmatch(full)]
        if not matched or not all(fits(modules[full], embeddings) for full in matched):
            problems.append(f"method.target_modules is the expression {targets!r}")
    refuse_tied_targets(model, targets)
    problems += [
        f"method.modules_to_save names {name!r}"
        for name in modules_to_save
        if not any(named(full, name) for full in modules)
    ]
    if problems:
        raise ModelError(
            f"{'; '.join(problems)}, which matches no module of {type(model).__name__} that an update can stand beside.",
            f"Its linear modules are: {', '.join(sorted(linear_kinds(model)))}; all-linear means them all.",
        )


def check_rank(
    model: PreTrainedModel, targets: str | list[str], rank: int, setting: str, *, strict: str | None = None
) -> None:
    """Refuse a rank that no target has room for; peft takes any, and trains numbers that can add nothing.

    Args:
        setting: the rank's name, such as method.rank.
        strict: why every target must have room for it; None: some that have not are only named.

    Raises:
        ModelError: with the widths there are.
    """
    widths: dict[str, int] = {}
    for full, module in model.named_modules():
        if is_target(model, full, module, targets):
            kind, width = full.split(".")[-1], min(widths_of(module))
            widths[kind] = min(width, widths.get(kind, width))
    narrow = sorted(kind for kind, width in widths.items() if width < rank)
    if not narrow:
        return
    found = ", ".join(f"{kind} {widths[kind]}" for kind in narrow)
    if strict or len(narrow) == len(widths):
        raise ModelError(
            f"{setting} is {rank}, more than {'some' if len(narrow) < len(widths) else 'all'} of the target modules of "
            f"{type(model).__name__} have rows or columns ({found}){f': {strict}' if strict else ''}.",
            f"Set {setting} to {min(widths.values()) if strict else max(widths.values())} or less.",
        )
    if model.device.type != "meta":
        say(f"method: {setting} {rank} is above the width of {found}: what is above it adds nothing there")


def widths_of(module: Any) -> tuple[int, int]:
    """Width of a linear map's input and output, or of an embedding; the weight's shape does not tell, where it is packed
    in 4 bits or transposed (GPT-2)."""
    names = next(
        pair
        for pair in (("in_features", "out_features"), ("nx", "nf"), ("num_embeddings", "embedding_dim"))
        if hasattr(module, pair[0])
    )
    return getattr(module, names[0]), getattr(module, names[1])


def is_target(model: PreTrainedModel, full: str, module: nn.Module, targets: str | list[str]) -> bool:
    """Whether targets mean a module of a bare model."""
    if not fits(module, embeddings=True):
        return False
    if targets == ALL_LINEAR:
        return is_linear(module) and module is not model.get_output_embeddings() and not in_sequence_head(model, full)
    if isinstance(targets, str):
        return re.fullmatch(targets, full) is not None
    return any(named(full, name) for name in targets)


def refuse_tied_targets(model: PreTrainedModel, targets: str | list[str]) -> None:
    """An update beside one end of a tied weight: merging would put it into both ends, which is another model."""
    if not model.config.get_text_config().tie_word_embeddings or targets == ALL_LINEAR:  # which leaves both ends out
        return
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for full, module in model.named_modules():
        if id(module) not in ends:
            continue
        chosen = (
            re.fullmatch(targets, full) is not None
            if isinstance(targets, str)
            else any(named(full, name) for name in targets)
        )
        if chosen:
            raise ModelError(
                f"method.target_modules takes in {full}, which {type(model).__name__} ties to its other end: the update "
                "would stand beside one of them only, and could not be merged.",
                f"Put {full.split('.')[-1]} into method.modules_to_save of method lora, which keeps both ends tied.",
            )


def named(full: str, name: str) -> bool:
    """Whether a dotted name is `name`, or ends with it as whole parts."""
    return full == name or full.endswith(f".{name}")


def exact_names(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Names by which peft finds the modules that `names` mean here, and no others: it takes whatever ends so, be it
    within a part (with `norm` each `input_layernorm` too). Where that would be more, they are full names."""
    modules = dict(model.named_modules())
    found: list[str] = []
    for name in names:
        meant = [full for full in modules if named(full, name)]
        found += [name] if meant == [full for full in modules if full.endswith(name)] else meant
    return list(dict.fromkeys(found))


def fits(module: nn.Module, embeddings: bool) -> bool:
    """Whether an update can stand beside a module."""
    from torch import nn

    return is_linear(module) or (embeddings and isinstance(module, nn.Embedding))


def is_linear(module: nn.Module) -> bool:
    """A linear map, GPT-2's Conv1D included."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def has_conv1d(model: nn.Module) -> bool:
    """Whether a model has GPT-2's Conv1D, which keeps its weight transposed (peft: fan_in_fan_out)."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def linear_kinds(model: nn.Module) -> set[str]:
    """Last parts of the names of all linear modules, the head excepted."""
    return {
        name.split(".")[-1]
        for name, module in model.named_modules()
        if is_linear(module) and not name.endswith("lm_head") and not in_sequence_head(model, name)
    }


def present(model: PreTrainedModel, names: tuple[str, ...], what: str) -> list[str]:
    """Those of `names` that are linear modules of the model.

    Raises:
        ModelError: none is.
    """
    linear = [full for full, module in model.named_modules() if is_linear(module)]
    found = [name for name in names if any(named(full, name) for full in linear)]
    if not found:
        raise ModelError(
            f"the {what} of {type(model).__name__} were not found: none of its linear modules is called "
            f"{', '.join(names)}.",
            f"Name them in the method's settings; its linear modules are: {', '.join(sorted(linear_kinds(model)))}.",
        )
    return found


def layer_blocks(model: PreTrainedModel, remedy: str = "Use method: lora, which needs no layers.") -> list[nn.Module]:
    """The decoder's layers in order.

    Raises:
        ModelError: no list of modules has the length that the config names.
    """
    from torch import nn

    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ModelError(
        f"the layers of {type(model).__name__} were not found: no module list has {count} entries.", remedy
    )
