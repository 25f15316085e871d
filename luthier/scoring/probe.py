"""Which route a kind of model may take, found out by trying: a small random copy of its config, both routes compared.

The copy (`luthier.scoring.small_copy`) has every setting that changes the mathematics; its weights are made large, so that
a soft cap or a missing scale shows instead of hiding in the rounding.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
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
from luthier.scoring.small_copy import PADDING, enlarge, shrink
from luthier.scoring.trunk import goes_on

TOLERANCE = 1e-5  # relative, float32, dropout off
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


def _forest(vocabulary: int) -> Batch:
    """A root with two children, and two more roots; every token but the roots' first is a target."""
    segments = (Segment(0, 6), Segment(6, 11, 0), Segment(11, 14, 0), Segment(14, 21), Segment(21, 24))
    position: list[int] = []
    sources: list[int] = []
    targets: list[int] = []
    input_ids_T = torch.randint(PADDING + 1, vocabulary, (24,))
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
