"""Which route a kind of model may take, found out by trying: a small random copy of its config, both routes compared.

The copy keeps every layer type and every setting that changes the mathematics (windows, soft caps, scales, norms); its
weights are made large, so that a soft cap or a missing scale shows instead of hiding in the rounding.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from luthier.data.batch import Batch, Segment
from luthier.foundation.errors import ModelError
from luthier.model.heads import ENDING
from luthier.scoring import attention
from luthier.scoring.backbone import backbone_of
from luthier.scoring.fused.choosing import fuse
from luthier.scoring.head import Head
from luthier.scoring.padded import unroll
from luthier.scoring.readouts import HeadAt
from luthier.scoring.segmented import hidden_at
from luthier.scoring.trunk import goes_on

TOLERANCE = 1e-5  # relative, float32, dropout off
SEEN = 4  # positions of a window, a chunk, a step of a scale: fewer than the probe's sequences have, so that they act
STRETCHED = ("dynamic", "longrope")  # frequencies that depend on a sequence's length
# settings that name layers by their number; any other list with an entry for each layer is found by its length
LAYER_NUMBERS = ("mlp_only_layers", "moe_layers")
DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers")  # so many layers have no mixture of experts
FEW = 4  # different entries of such a list, each of which a layer of the copy has; where there are more, they are sizes
SEED = 20240229


class HeadError(ValueError):
    """The head applied to hidden states does not give the model's own logits."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the probe found.

    Args:
        segmented: whether both routes are equal in value and gradient.
        plain_head: whether the head is one linear map.
        reason: why not segmented; empty if it is.
        pools_last: of a model with a head for classification, whether that is one map of the hidden state of a sequence's
            last token; else (encoders, with a pooler of their own) only its own forward computes it.
        goes_on: whether its layers above any go on from the states that enter them (see `luthier.scoring.trunk`).
    """

    segmented: bool
    plain_head: bool
    reason: str = ""
    pools_last: bool = False
    goes_on: bool = False

    def choose(self, wish: Literal["auto", "segmented", "padded"]) -> Literal["segmented", "padded"]:
        """The route for a wish.

        Raises:
            ModelError: segmented was asked for by name and is not possible.
        """
        if wish == "segmented" and not self.segmented:
            raise ModelError(
                f"model.attention is segmented, but this kind of model can't take that route: {self.reason}.",
                "Set model.attention to auto or padded.",
            )
        return "padded" if wish == "padded" or not self.segmented else "segmented"


def padded_only(finding: Finding, reason: str) -> Finding:
    """What the probe found of a model's kind, where something about this one keeps it from the segmented route."""
    return replace(finding, segmented=False, reason=reason)


def probe(config: PreTrainedConfig, model_class: type[PreTrainedModel], need_segments: bool = True) -> Finding:
    """Try a small random copy of a model. Cached; leaves torch's random state as it was."""
    text = json.dumps(config.to_dict(), sort_keys=True, default=str)
    return _probe(text, type(config), model_class, need_segments)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=64)
def _probe(
    text: str, config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel], need_segments: bool
) -> Finding:
    with undisturbed():
        try:
            model = model_class(shrink(config_class.from_dict(json.loads(text)))).float().eval()
        except Exception as error:  # any failure of a foreign constructor on a shrunk config means: not probed
            return Finding(False, False, f"its config could not be shrunk for the probe ({brief(error)})")
        enlarge(model)
        batch = _forest(model.config.get_text_config().vocab_size)
        if has_sequence_head(model):
            return _probe_sequence_head(model, batch, need_segments)
        try:
            if not _is_causal(model, batch.input_ids_T[None]):
                raise ModelError(
                    f"{model_class.__name__} reads in both directions: a token sees the ones after it, so there is no next "
                    "token to learn.",
                    "Choose a causal language model.",
                )
            plain = _head_is_plain(model, batch)
        except ModelError:
            raise
        except HeadError as error:
            raise ModelError(
                f"{model_class.__name__} can't be trained here: its output head could not be computed apart from its "
                f"backbone ({error}).",
                "Models without a language-model head over their last hidden state are not supported.",
            ) from error
        except Exception as error:  # the small copy does not run (a width that its config derives elsewhere)
            return Finding(False, False, f"its small copy does not run ({brief(error)})")
        if not need_segments:
            return Finding(False, plain, "not tried")
        try:
            head = Head(model, plain)
            reason = _difference(model, batch, lambda hidden_NH: head.target_logp(hidden_NH, batch.targets_N))
        except Exception as error:  # whatever a foreign model raises on this route is the reason not to take it
            reason = brief(error)
        return Finding(not reason, plain, reason, goes_on=not reason and _goes_on(model, batch))


@contextmanager
def undisturbed() -> Iterator[None]:
    """The state of torch in which small copies are made and compared, whatever surrounds them: random numbers of their own,
    gradients, and no autocast, under which equal ways differ by more than a rounding of float32."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        torch.manual_seed(SEED)
        yield


def has_sequence_head(model: PreTrainedModel) -> bool:
    """Whether a model gives a sequence some numbers instead of the next token."""
    return type(model).__name__.endswith(ENDING)


def _probe_sequence_head(model: PreTrainedModel, batch: Batch, need_segments: bool) -> Finding:
    """The finding for a model with a head for classification; without one that can be tried, its own forward is taken."""
    try:
        score = getattr(model, HeadAt().head, None)
        row = batch.input_ids_T[None]
        with torch.no_grad():
            hidden_LH = backbone_of(model)(input_ids=row, use_cache=False).last_hidden_state[0]
            last = isinstance(score, nn.Linear) and (
                relative(score(hidden_LH[-1:]), model(input_ids=row, use_cache=False).logits) < TOLERANCE
            )
        if not last:
            return Finding(False, False, "the model reads a sequence with a pooler of its own")
        if not need_segments:
            return Finding(False, False, "not tried", pools_last=True)
        reason = _difference(model, batch, lambda hidden_NH: score(hidden_NH).sum(dim=1))  # type: ignore[misc]
    except Exception as error:  # whatever a foreign model raises is the reason to let it compute all by itself
        return Finding(False, False, brief(error))
    return Finding(not reason, False, reason, pools_last=True, goes_on=not reason and _goes_on(model, batch))


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """A config of the same kind with few, narrow layers: one of each layer type."""
    small = copy.deepcopy(config)
    text: Any = small.get_text_config()
    heads = getattr(text, "num_attention_heads", 4)
    grouped = getattr(text, "num_key_value_heads", None)
    groups = max(1, heads // grouped) if grouped else 1
    key_heads = min(2, grouped or 2)
    new_heads = key_heads * min(2, groups) if grouped else 2
    head_width = 8
    settings: dict[str, Any] = {
        "num_attention_heads": new_heads,
        "hidden_size": new_heads * head_width,
        "intermediate_size": 32,
        "intermediate_size_mlp": 32,
        "vocab_size": 64,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "num_local_experts": 4,
        "n_routed_experts": 4,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 2,
        "n_inner": 32,
        "ffn_dim": 32,
    }
    if grouped:
        settings["num_key_value_heads"] = key_heads
    if getattr(text, "head_dim", None):
        settings["head_dim"] = head_width
    for name in ("sliding_window", "attention_chunk_size", "floor_scale"):
        if getattr(text, name, None):
            settings[name] = SEEN
    for rope in _rotary_settings(text):
        if rope.get("original_max_position_embeddings") and rope.get("rope_type") not in STRETCHED:
            rope["original_max_position_embeddings"] = SEEN
    settings = {**_of_layers(text), **settings}
    for name, value in settings.items():
        attribute = getattr(text, "attribute_map", {}).get(name, name)
        derived = isinstance(getattr(type(text), attribute, None), property)  # follows from the others
        if getattr(text, attribute, None) is not None and not derived:
            setattr(text, attribute, value)
    return small


def _rotary_settings(text: Any) -> list[dict[str, Any]]:
    """The settings of rotary positions, one for all layers or one for each of their types."""
    found = getattr(text, "rope_parameters", None) or {}
    return [part for part in (found, *found.values()) if isinstance(part, dict)]


def _of_layers(text: Any) -> dict[str, Any]:
    """How many layers the copy has, and what is set for each: every entry of such a setting occurs."""
    count = getattr(text, "num_hidden_layers", 2)
    lists = {
        name: value
        for name, value in vars(text).items()
        if isinstance(value, (list, tuple)) and len(value) == count and name not in LAYER_NUMBERS
    }
    numbers = {name: value for name in LAYER_NUMBERS if (value := getattr(text, name, None)) is not None}
    dense = {name: value for name in DENSE_FIRST if isinstance(value := getattr(text, name, None), int)}
    step = getattr(text, "decoder_sparse_step", None)
    if "mlp_only_layers" in numbers and step:  # two ways to say the same: one is enough
        skipped = [place for place in range(count) if (place + 1) % step]
        numbers["mlp_only_layers"] = sorted({*numbers["mlp_only_layers"], *skipped})
    told: list[Callable[[int], object]] = [
        *(lambda place, value=value: repr(value[place]) for value in lists.values() if _different(value) <= FEW),
        *(lambda place, value=value: place in value for value in numbers.values()),
        *(lambda place, value=value: place < value for value in dense.values()),
    ]
    seen: set[tuple[int, object]] = set()
    kept: list[int] = []
    for place in range(count):
        says = {(number, tell(place)) for number, tell in enumerate(told)}
        if not says <= seen or not kept:
            kept.append(place)
            seen |= says
    kept = kept if len(kept) > 1 else kept * 2
    made: dict[str, Any] = {"num_hidden_layers": len(kept)}
    made |= {name: [value[place] for place in kept] for name, value in lists.items()}
    made |= {name: [new for new, place in enumerate(kept) if place in value] for name, value in numbers.items()}
    made |= {name: sum(place < value for place in kept) for name, value in dense.items()}
    if "mlp_only_layers" in numbers and step:
        made["decoder_sparse_step"] = 1
    return made


def _different(values: Sequence[object]) -> int:
    return len(set(map(repr, values)))


def enlarge(model: nn.Module) -> None:
    """Weights of size about 0.3 instead of 0.02: logits of several units, past where a soft cap looks linear."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3)
            parameter.requires_grad_(True)


def _forest(vocabulary: int) -> Batch:
    """A root with two children, and two more roots; every token but the roots' first is a target."""
    segments = (Segment(0, 6), Segment(6, 11, 0), Segment(11, 14, 0), Segment(14, 21), Segment(21, 24))
    position: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    input_ids_T = torch.randint(0, vocabulary, (24,))
    for segment in segments:
        offset = 6 if segment.parent is not None else 0
        position += range(offset, offset + segment.end - segment.start)
        for token in range(segment.start, segment.end):
            if token > segment.start:
                sources.append(token - 1)
                targets.append(int(input_ids_T[token]))
            elif segment.parent is not None:
                sources.append(segments[segment.parent].end - 1)
                targets.append(int(input_ids_T[token]))
    count = len(sources)
    return Batch(
        input_ids_T=input_ids_T,
        position_ids_T=torch.tensor(position),
        segments=segments,
        source_positions_N=torch.tensor(sources),
        targets_N=torch.tensor(targets),
        weights_N=torch.linspace(0.5, 1.5, count),
        sequence_of_source_N=torch.zeros(count, dtype=torch.long),
        tokens=24,
        leaves=(1, 2, 3, 4),
    )


def _is_causal(model: PreTrainedModel, input_ids_BL: Tensor) -> bool:
    """Whether a changed last token leaves the logits before it alone."""
    changed = input_ids_BL.clone()
    changed[:, -1] = (changed[:, -1] + 1) % model.config.get_text_config().vocab_size
    with torch.no_grad():
        before, after = (model(input_ids=ids, use_cache=False).logits[:, :-1] for ids in (input_ids_BL, changed))
    return relative(after, before) < TOLERANCE


def _head_is_plain(model: PreTrainedModel, batch: Batch) -> bool:
    """Whether applying the output embeddings to the hidden states gives the model's own logits."""
    rows = unroll(batch)
    inputs = {
        "input_ids": rows.input_ids_RL,
        "attention_mask": rows.attention_mask_RL,
        "position_ids": rows.position_ids_RL,
        "use_cache": False,
    }
    with torch.no_grad():
        own_logits = model(**inputs).logits[rows.row_N, rows.column_N].float()
        hidden_NH = backbone_of(model)(**inputs).last_hidden_state[rows.row_N, rows.column_N]
        if relative(Head(model, plain=True).logits(hidden_NH), own_logits) < TOLERANCE:
            return True
        error = relative(Head(model, plain=False).logits(hidden_NH), own_logits)
    if error >= TOLERANCE:
        raise HeadError(f"its logits differ from its own forward by {error:.1e}")
    return False


def _difference(model: PreTrainedModel, batch: Batch, read: Callable[[Tensor], Tensor]) -> str:
    """Why the two routes differ on this batch in what is read of the hidden states [N, H], a number each; or an empty
    string."""
    rows = unroll(batch)
    backbone: Any = backbone_of(model)
    own_attention = model.config._attn_implementation

    def run(segmented: bool) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad(set_to_none=True)
        model.set_attn_implementation(attention.NAME if segmented else own_attention)
        if segmented:
            fuse(model)
            _, hidden_UH, of_place_N = hidden_at(model, batch, batch.source_positions_N)
            hidden_NH = hidden_UH[of_place_N]
        else:
            output = backbone(
                input_ids=rows.input_ids_RL,
                attention_mask=rows.attention_mask_RL,
                position_ids=rows.position_ids_RL,
                use_cache=False,
            )
            hidden_NH = output.last_hidden_state[rows.row_N, rows.column_N]
        value_N = read(hidden_NH)
        (value_N * batch.weights_N).sum().backward()
        return value_N.detach(), [p.grad.clone() if p.grad is not None else torch.zeros(1) for p in model.parameters()]

    reference, reference_gradients = run(segmented=False)
    value, gradients = run(segmented=True)
    error = relative(value, reference)
    if not error < TOLERANCE:
        return f"log-probabilities differ by {error:.1e} between the routes"
    # some gradients are zero in exact arithmetic (a key's bias): those are measured against the whole gradient
    floor = 1e-3 * float(torch.stack([gradient.norm() for gradient in reference_gradients]).norm())
    worst = max(relative(own, theirs, floor) for own, theirs in zip(gradients, reference_gradients, strict=True))
    # a gradient is a sum over tokens in another order: ten roundings more than a value
    return "" if worst < 10 * TOLERANCE else f"gradients differ by {worst:.1e} between the routes"


def _goes_on(model: PreTrainedModel, batch: Batch) -> bool:
    """Whether the model, on the segmented route, goes on from the states below any of its layers."""
    layers = getattr(backbone_of(model), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return False
    try:
        with torch.no_grad():
            return all(goes_on(model, layer, batch) for layer in range(1, len(layers)))
    except Exception:  # whatever a foreign model raises there, it does not
        return False


def relative(value: Tensor, reference: Tensor, floor: float = 1e-12) -> float:
    """Norm of the difference by the norm of the reference."""
    return float((value - reference).norm() / reference.norm().clamp_min(floor))


def brief(error: BaseException) -> str:
    """An error's class and its first line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}".rstrip(": ")
