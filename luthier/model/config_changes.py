"""A model's config, changed as a run asks before weights are read: settings of its own, stretched positions, a vocabulary."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from luthier.config.model_section import RopeScalingConfig
from luthier.foundation.errors import ModelError
from luthier.foundation.registry import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# keys of a config.json that have a setting of their own, or none that could act
ELSEWHERE = {
    "rope_parameters": "model.rope_scaling",
    "rope_scaling": "model.rope_scaling",
    "quantization_config": "model.quantization",
    "dtype": "model.dtype",
    "torch_dtype": "model.dtype",
    "vocab_size": "the tokenizer, whose size it takes (model.tokenizer with model.from_scratch)",
    "model_type": "model.name",
    "architectures": "model.name",
    "auto_map": "model.name",
}
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def changed(
    config: PreTrainedConfig, overrides: Mapping[str, Any], rope_scaling: RopeScalingConfig | None
) -> PreTrainedConfig:
    """A copy of a config with the settings in place.

    Raises:
        ModelError: a key that the config does not have, a value that it refuses, positions that can't be stretched.
    """
    made = _overridden(config, overrides) if overrides else copy.deepcopy(config)
    if rope_scaling is not None:
        _stretch(made, rope_scaling)
    return made


def _overridden(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    text: Any = config.get_text_config()
    settings = text.to_dict()
    names = {**dict.fromkeys(settings, ""), **text.attribute_map}
    for key in overrides:
        if key in ELSEWHERE:
            raise ModelError(f"model.config_overrides sets {key}.", f"That is {ELSEWHERE[key]}.")
        if key not in names or key.startswith("_"):
            close = nearest(key, names, 3)
            raise ModelError(
                f"model.config_overrides sets {key!r}, which the config of {config.model_type} does not have.",
                f"Did you mean {' or '.join(close)}?" if close else f"It has: {', '.join(sorted(settings))}.",
            )
    new = {text.attribute_map.get(key, key): value for key, value in overrides.items()}
    count, wanted = text.num_hidden_layers, new.get(text.attribute_map.get("num_hidden_layers", "num_hidden_layers"))
    if isinstance(wanted, int) and wanted != count:
        for key, value in settings.items():  # one entry a layer, such as layer_types
            if isinstance(value, list) and len(value) == count and key not in new:
                settings[key] = (value * -(-wanted // count))[:wanted]
    widths = {text.attribute_map.get(key, key) for key in ("hidden_size", "num_attention_heads")}
    if widths & set(new) and "head_dim" not in new and _follows(text, "head_dim"):
        settings.pop("head_dim", None)
    try:
        made = type(text)(**{key: value for key, value in {**settings, **new}.items() if key != "model_type"})
    except Exception as error:  # each family checks its values in its own way
        first = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise ModelError(
            f"model.config_overrides {dict(overrides)} are refused by the config of {config.model_type}: {first}",
            "Change the values, or leave them out.",
        ) from error
    if text is config:
        made.name_or_path = config.name_or_path
        return made
    whole: Any = copy.deepcopy(config)
    inner = next(key for key, value in vars(whole).items() if type(value) is type(text))
    setattr(whole, inner, made)
    return whole


def _follows(text: Any, key: str) -> bool:
    """Whether a head's width is the one that follows from the other settings."""
    return bool(getattr(text, key, None) == text.hidden_size // text.num_attention_heads)


def with_factor(how: RopeScalingConfig, config: PreTrainedConfig, length: int) -> RopeScalingConfig | None:
    """Stretching with a factor: the one asked for, else the smallest whole number that makes room for rows of `length`; None
    where they have room already."""
    known = known_positions(config)
    if how.factor is not None or known is None:
        return how
    factor = math.ceil(length / (how.original_max_position_embeddings or known))
    return how.model_copy(update={"factor": float(factor)}) if factor > 1 else None


def _stretch(config: PreTrainedConfig, how: RopeScalingConfig) -> None:
    """Put transformers' rope_parameters into a config."""
    text: Any = config.get_text_config()
    name = f"model.rope_scaling {how.type}"
    found, known = getattr(text, "rope_parameters", None), getattr(text, "max_position_embeddings", None)
    if not found or not isinstance(known, int):
        raise ModelError(
            f"{name} stretches rotary positions, and a {config.model_type} has none.", "Leave model.rope_scaling out."
        )
    nested = text.nested_rope_parameter_keys(found)
    if nested and "full_attention" not in nested:
        raise ModelError(
            f"{name}: the positions of {config.model_type} are of several kinds ({', '.join(nested)}).", ""
        )
    place = found["full_attention"] if nested else found
    if place.get("rope_type", "default") != "default":
        raise ModelError(
            f"{name}: the positions of this model are scaled already ({place['rope_type']}, factor {place.get('factor')}).",
            "Leave model.rope_scaling out.",
        )
    factor = how.factor or 1.0
    original = how.original_max_position_embeddings or known
    scaled = {**place, "rope_type": how.type, "factor": factor}
    if how.type == "yarn":
        scaled["original_max_position_embeddings"] = original
        scaled |= {
            key: getattr(how, key)
            for key in ("attention_factor", "beta_fast", "beta_slow")
            if getattr(how, key) is not None
        }
    text.rope_parameters = {**found, "full_attention": scaled} if nested else scaled
    if how.type != "dynamic":  # which reads the known length there
        text.max_position_embeddings = max(known, round(original * factor))


def known_positions(config: PreTrainedConfig) -> int | None:
    """Tokens of a row that have a position which a model knows, dynamic stretching included; None where nothing says."""
    text: Any = config.get_text_config()
    known = getattr(text, "max_position_embeddings", None)
    if not isinstance(known, int) or known < 0:  # XLNet says -1
        return None
    found = getattr(text, "rope_parameters", None) or {}
    if not found:
        return known - _first_position(text, known)
    place = found.get("full_attention") or found
    return round(known * place["factor"]) if place.get("rope_type") == "dynamic" else known


def _first_position(config: Any, known: int) -> int:
    """The position of a row's first token: 0, but behind the padding token's where a table of positions has a place for that
    one (RoBERTa and its kin: of 514 positions 512 are for tokens)."""
    import torch
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModel

    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:  # the kin of BERT: others have no such table
        return 0
    with torch.device("meta"):
        model: Any = AutoModel.from_config(copy.deepcopy(config))
    for name, module in model.named_modules():
        of_padding = getattr(module, "padding_idx", None)
        table = name.endswith("position_embeddings") and getattr(module, "num_embeddings", None) == known
        if table and of_padding is not None:
            return int(of_padding) + 1
    return 0


def check_shapes_kept(
    before: PreTrainedConfig, after: PreTrainedConfig, skeleton: Callable[[PreTrainedConfig], PreTrainedModel]
) -> None:
    """Refuse overrides that would ask for weights of another shape than the model's.

    Raises:
        ModelError: with the first weights that would not fit.
    """
    own, asked = (
        {name: list(weight.shape) for name, weight in skeleton(config).named_parameters()} for config in (before, after)
    )
    strange = [name for name, shape in asked.items() if own.get(name) != shape]
    if strange:
        name = strange[0]
        found = f"has {own[name]} in the model" if name in own else "is not in the model"
        raise ModelError(
            f"model.config_overrides ask for {len(strange)} weights that the model does not have: {name} would be "
            f"{asked[name]}, and {found}.",
            "Leave those overrides out, or train such a model from random weights with model.from_scratch: true.",
        )


def sized_for(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """A config whose vocabulary and special tokens are a tokenizer's."""
    made: Any = copy.deepcopy(config)
    text = made.get_text_config()
    text.vocab_size = len(tokenizer)
    if hasattr(made, "quantization_config"):
        del made.quantization_config  # of weights that are not used
    for key in SPECIAL_TOKENS:
        for part in {id(made): made, id(text): text}.values():
            setattr(part, key, getattr(tokenizer, key))
    return made
