"""A model's ends under LoRA, its embedding and its head: rows of new tokens that learn in them, and ends that learn whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.foundation.errors import ModelError
from luthier.model.method import Apply
from luthier.model.methods._targets import is_target

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def token_rows(
    model: PreTrainedModel, how: Apply, targets: str | list[str], modules_to_save: list[str]
) -> dict[str, list[int]] | None:
    """New rows of the embedding, and of the head where it is not tied (peft follows the tie by itself).

    Raises:
        ModelError: an end that peft can't train so.
    """
    whole = _last_parts(modules_to_save)  # those learn every row anyway
    _refuse_biased_head(model, how, whole)
    if not how.new_token_ids:
        return None
    tied = model.config.get_text_config().tie_word_embeddings
    modules = [model.get_input_embeddings()] + ([] if tied else [model.get_output_embeddings()])
    full_names = {id(module): name for name, module in model.named_modules()}
    names = {key: name.split(".")[-1] for key, name in full_names.items()}
    if tied and whole & {names[id(model.get_output_embeddings())], names[id(modules[0])]}:
        return None
    by_rows = [module for module in modules if names[id(module)] not in whole]
    both = [names[id(end)] for end in by_rows if is_target(model, full_names[id(end)], end, targets)]
    if both:
        raise ModelError(
            f"this run adds {len(how.new_token_ids)} tokens to the vocabulary, whose rows of {' and '.join(both)} must learn, and "
            "peft can't train them beside an update, which method.target_modules asks for there.",
            f"Put {' and '.join(both)} into method.modules_to_save instead, to learn whole, or leave it out of target_modules.",
        )
    return {names[id(module)]: list(how.new_token_ids) for module in by_rows} or None


def learns_a_tied_end(model: PreTrainedModel, modules_to_save: list[str]) -> bool:
    """Whether an end of a tied weight is to learn whole, the other with it.

    Raises:
        ModelError: by a name that peft does not know for an end, so that it would leave the other behind.
    """
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    if not model.config.get_text_config().tie_word_embeddings:
        return False
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    own = {name.split(".")[-1] for name, module in model.named_modules() if id(module) in ends}
    chosen = own & _last_parts(modules_to_save)
    if chosen and not chosen & set(EMBEDDING_LAYER_NAMES):
        known = sorted((own - chosen) & set(EMBEDDING_LAYER_NAMES))
        raise ModelError(
            f"method.modules_to_save names {', '.join(sorted(chosen))}, which {type(model).__name__} ties to its other end, "
            "and peft would train one end alone.",
            f"Name {', '.join(known)} instead: both then learn as one."
            if known
            else "Use method full, or freeze with method.trainable_modules.",
        )
    return bool(chosen)


def _refuse_biased_head(model: PreTrainedModel, how: Apply, whole: set[str]) -> None:
    """peft computes a head of which rows learn, or that is tied to an embedding that learns, without its bias."""
    head = model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is None:
        return
    names = {id(module): name.split(".")[-1] for name, module in model.named_modules()}
    name = names[id(head)]
    tied = model.config.get_text_config().tie_word_embeddings
    if tied and (how.new_token_ids or whole & {name, names[id(model.get_input_embeddings())]}):
        raise ModelError(
            f"the head of {type(model).__name__} is tied to the embedding and has a bias, which peft leaves out where they "
            "learn.",
            "Use method: full or freeze, or train neither (method.modules_to_save, new tokens).",
        )
    if how.new_token_ids and not tied and name not in whole:
        raise ModelError(
            f"this run adds {len(how.new_token_ids)} tokens to the vocabulary, whose rows of {name} must learn, and peft "
            f"computes such a head without its bias, which {type(model).__name__} has.",
            f"Put {name} into method.modules_to_save: it then learns whole, its bias too.",
        )


def _last_parts(names: list[str]) -> set[str]:
    return {name.split(".")[-1] for name in names}
