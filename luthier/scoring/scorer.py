"""`Scorer`: the only forward pass in training and evaluation.

Engines wrap it, so data-parallel hooks and sharded parameters see every use of the weights, the head's included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.data.batch import Batch
from luthier.model.placement import is_spread
from luthier.scoring import attention
from luthier.scoring.backbone import backbone_of
from luthier.scoring.dropout import drops_out
from luthier.scoring.dynamic_positions import forget_lengths, independent_length
from luthier.scoring.fused.choosing import fuse
from luthier.scoring.head import Head
from luthier.scoring.padded import unroll
from luthier.scoring.probe import Finding, has_sequence_head, padded_only, probe
from luthier.scoring.readouts import (
    HeadAt,
    PerChunk,
    Positions,
    Readout,
    TargetLogp,
    as_readouts,
    head_of,
    head_outputs,
    own_logits,
)
from luthier.scoring.readouts import Scores as Scores
from luthier.scoring.router import RouterLoss
from luthier.scoring.segmented import computed, hidden_at
from luthier.scoring.sequence_summary import reads_last_column
from luthier.scoring.trunk import Trunk
from luthier.scoring.virtual_tokens import (
    WHY_PADDED,
    has_virtual_tokens,
    hidden_behind_virtual_tokens,
    refuse_checkpointed_prefix,
)

Route = Literal["segmented", "padded"]


def transformers_model(model: Any) -> PreTrainedModel:
    """The transformers model inside a peft wrapper, or the model itself."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    assert isinstance(inner, PreTrainedModel)
    return inner


class Scorer(nn.Module):
    """A model and the reading of it: a causal language model, or one with a head for classification.

    Args:
        model: a transformers model or a peft wrapper around one.
        route: "auto" takes the segmented route where the model's kind passes the probe.
        pad_token_id: fills rows of the padded route; masked out, so any valid id does.
        router_aux_loss_coef: see `luthier.scoring.router.RouterLoss`.
        penalty: what a training method adds to the loss, see `luthier.model.method.Method.penalty`.
        fused: whether modules compute in fewer passes where that gives the same, on the segmented route (see
            `luthier.scoring.fused`); the padded route, the reference, computes module by module.

    Raises:
        luthier.foundation.errors.ModelError: the segmented route or a router's loss was asked for, and the model can't
            give it; or gradient checkpointing, which a prefix can't bear.
    """

    def __init__(
        self,
        model: nn.Module,
        route: Literal["auto", "segmented", "padded"] = "auto",
        pad_token_id: int = 0,
        router_aux_loss_coef: float | None = None,
        penalty: Callable[[], Tensor | None] = lambda: None,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        inner = transformers_model(model)
        self._virtual = has_virtual_tokens(model)
        spread = is_spread(model)
        finding = probe(inner.config, type(inner), need_segments=route != "padded" and not (self._virtual or spread))
        if self._virtual:
            refuse_checkpointed_prefix(model, inner.is_activation_checkpointing)
            finding = padded_only(finding, WHY_PADDED)
        elif spread:
            finding = padded_only(finding, "its modules lie on several devices")
        elif route == "padded":
            finding = padded_only(finding, "model.attention is padded")
        self.finding: Finding = finding
        self._reads_itself = has_sequence_head(inner) and not finding.pools_last
        self._pad_left = self._reads_itself and reads_last_column(inner, self._virtual)
        self.route: Route = self.finding.choose(route)
        self.pad_token_id = pad_token_id
        self._head = Head(inner, self.finding.plain_head)
        self.router_loss = RouterLoss(inner, router_aux_loss_coef)
        self._penalty = penalty
        self.trunk: Trunk | None = None
        forget_lengths(inner)
        if self.route == "segmented":
            self._independent_length = independent_length(inner)
            inner.set_attn_implementation(attention.NAME)
            if fused:
                fuse(inner)

    def may_share(self, training: bool) -> bool:
        """Whether sequences that begin alike may be laid down once, with nothing changed."""
        return not self.why_apart(training)

    def why_apart(self, training: bool) -> str:
        """Why sequences that begin alike are each computed whole; empty where they may be laid down once: the segmented route
        computes a token once, no router's loss counts tokens, and nothing is dropped out (each sequence would drop other
        units)."""
        if self.route == "padded":
            return f"this run computes padded rows, each of them whole{f': {self.finding.reason}' if self.finding.reason else ''}"
        if training and self.router_loss.arguments:
            return "the router's load-balancing loss counts the tokens of each example"
        if training and drops_out(self.model):
            return "the method or the model drops out, in each example other units"
        return ""

    def tokens_computed(self, batch: Batch, readout: Readout | Sequence[Readout] = TargetLogp()) -> int:  # noqa: B008 - frozen
        """Tokens of a batch that go through the model in training for some readouts, padding included."""
        if self.route == "padded":
            return unroll(batch, self.pad_token_id).input_ids_RL.numel()
        if self.router_loss.arguments:
            return len(batch.input_ids_T)
        return sum(map(len, computed(batch, self.rows_read(batch, readout), self._independent_length)[1]))

    def rows_read(self, batch: Batch, readout: Readout | Sequence[Readout] = TargetLogp()) -> list[int]:  # noqa: B008 - frozen
        """The rows of a batch that some readouts look at, ascending."""
        rows: list[int] = Positions(batch, as_readouts(readout), self.pad_token_id).rows_P.unique().tolist()
        return rows

    def forward(self, batch: Batch, readout: Readout | Sequence[Readout] = TargetLogp()) -> Scores:  # noqa: B008 - frozen
        """What the readouts ask for of a batch, which is on the model's device."""
        readouts = as_readouts(readout)
        if self._reads_itself:
            return self._own_reading(batch, readouts)
        positions = Positions(batch, readouts, self.pad_token_id)
        hidden_UH, of_place_P, auxiliary_loss = self._hidden(replace(batch, source_positions_N=positions.rows_P))
        penalty = self._penalty() if self.training else None
        if penalty is not None:
            auxiliary_loss = penalty if auxiliary_loss is None else auxiliary_loss + penalty
        readings: dict[Readout, Tensor] = {}
        for wanted in (item for item in readouts if isinstance(item, HeadAt)):
            head = head_of(transformers_model(self.model), wanted.head)
            readings[wanted] = head_outputs(head, hidden_UH[positions.part(of_place_P, wanted.place)])
        chunked = [item for item in readouts if not isinstance(item, HeadAt)]
        if chunked:
            functions = [item.fn for item in chunked if isinstance(item, PerChunk)]
            logp_N, values = self._head.read(
                hidden_UH, batch.targets_N, functions, positions.part(of_place_P, "sources")
            )
            of_functions = iter(values)
            readings |= {item: logp_N if isinstance(item, TargetLogp) else next(of_functions) for item in chunked}
        return Scores(readings, auxiliary_loss)

    def _own_reading(self, batch: Batch, readouts: tuple[Readout, ...]) -> Scores:
        """The head of a model that pools in a way of its own, by its own forward."""
        if readouts != (HeadAt(),):
            raise ValueError(f"{type(transformers_model(self.model)).__name__} has only its own head, not {readouts}")
        rows = unroll(batch, self.pad_token_id)
        logits = own_logits(self.model, rows, batch.extras.get("second_text_at"), self._pad_left)
        return Scores({HeadAt(): logits}, self._penalty() if self.training else None)

    def _hidden(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Last hidden states [U, H], which of them each of the batch's source positions is [N], and a router's loss in
        training."""
        router = self.router_loss.arguments if self.training else {}
        if self.route == "segmented":
            output, hidden, of_place_N = hidden_at(
                transformers_model(self.model),
                batch,
                batch.source_positions_N,
                self.trunk,
                self._independent_length,
                **router,
            )
            return hidden, of_place_N, self.router_loss(output) if router else None
        each_N = torch.arange(len(batch.source_positions_N), device=batch.input_ids_T.device)
        rows = unroll(batch, self.pad_token_id)
        if self._virtual:
            output, hidden_RLH, mask = hidden_behind_virtual_tokens(self.model, rows, **router)
            return hidden_RLH[rows.row_N, rows.column_N], each_N, self.router_loss(output, mask) if router else None
        backbone: Any = backbone_of(transformers_model(self.model))
        output = backbone(
            input_ids=rows.input_ids_RL,
            attention_mask=rows.attention_mask_RL,
            position_ids=rows.position_ids_RL,
            use_cache=False,
            **router,
        )
        hidden = output.last_hidden_state.to(rows.row_N.device)[rows.row_N, rows.column_N]
        return hidden, each_N, self.router_loss(output, rows.attention_mask_RL) if router else None
