"""Whether a job can be done the fast way, found out by trying: a small random copy of the model, both ways compared."""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from luthier.config.generation_section import GenerationSettings
from luthier.model.generation import Job
from luthier.model.placement import is_spread
from luthier.scoring.decoding.decoder import Decoder
from luthier.scoring.probe import TOLERANCE, brief, probe, relative, undisturbed
from luthier.scoring.scorer import transformers_model
from luthier.scoring.small_copy import STRETCHED, enlarge, shrink
from luthier.scoring.virtual_tokens import has_virtual_tokens


def why_not(job: Job) -> str:
    """Why only transformers' own `generate` can do a job; empty where the fast way can."""
    if job.settings.needs_transformers:
        return job.settings.needs_transformers
    if has_virtual_tokens(job.model):
        return "virtual tokens stand before every prompt"
    model = transformers_model(job.model)
    if is_spread(job.model):
        return "the model's modules lie on several devices"
    text: Any = model.config.get_text_config()
    longest = max(len(prompt) + job.room(prompt) for prompt in job.prompts)
    window = getattr(text, "sliding_window", None)
    if window is not None and getattr(text, "use_sliding_window", True) is not False and longest > window:
        return f"the model sees {window:,} tokens at a time, and prompt and answer may have {longest:,}"
    chunk = getattr(text, "attention_chunk_size", None)
    if chunk is not None and longest > chunk:
        return f"the model's attention goes by chunks of {chunk:,} tokens, and prompt and answer may have {longest:,}"
    found = getattr(text, "rope_parameters", None) or {}
    kinds = {str(part.get("rope_type")) for part in (found, *found.values()) if isinstance(part, dict)}
    if kinds & {*STRETCHED}:
        return "its rotary positions stretch with the length"
    text_of_config = json.dumps(model.config.to_dict(), sort_keys=True, default=str)
    return _reason(text_of_config, type(model.config), type(model))  # type: ignore[arg-type]


@functools.lru_cache(maxsize=64)
def _reason(text: str, config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel]) -> str:
    """Why a kind of model can't; empty where the logits of both ways agree."""
    config = config_class.from_dict(json.loads(text))
    finding = probe(config, model_class)
    if not finding.segmented:
        return finding.reason
    with undisturbed():
        try:
            model = model_class(shrink(config)).float().eval()
            enlarge(model)
            return _difference(model, finding.plain_head)
        except Exception as error:  # whatever a foreign model raises on this way is the reason not to take it
            return brief(error)


class _NoWords:
    """In place of a tokenizer."""

    def decode(self, *_: Any, **__: Any) -> str:
        return ""


def _difference(model: PreTrainedModel, plain_head: bool) -> str:
    """How the logits of the first two steps differ from the model's own; prompts stay within a shrunk window of 4."""
    prompts = [[1, 2, 3], [1, 2, 4]]

    class Listening(Decoder):
        logits: list[Any]

        def _logits(self, *arguments: Any) -> Any:
            found = super()._logits(*arguments)
            self.logits.append(found.clone())
            return found

    job = Job(model, _NoWords(), prompts, range(2), GenerationSettings(max_new_tokens=2), ())
    decoder = Listening(job, model, plain_head, least_saved=1)
    decoder.logits = []
    answers = {found.row: list(found.token_ids) for found in decoder.run()}
    order = [planned.prompt for planned in decoder.plan.answers]
    with torch.inference_mode():
        for step, logits_AV in enumerate(decoder.logits):
            for place, row in enumerate(order):
                ids = torch.tensor([prompts[row] + answers[row][:step]])
                error = relative(logits_AV[place], model(input_ids=ids, use_cache=False).logits[0, -1].float())
                if not error < TOLERANCE:
                    return f"logits differ by {error:.1e} between the ways"
    return ""
