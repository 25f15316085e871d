"""A transformers model on this machine: sorted and refilled batches, common beginnings computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from luthier.config.generation_section import GenerationSettings
from luthier.data.records import RowError
from luthier.evaluation.engine import Answer, EngineOptions, Opening, Request
from luthier.evaluation.opening import (
    OpenedModel,
    find_speaker,
    folded,
    open_weights,
    open_words,
    read_in,
    stop_tokens,
    text_to_continue,
)
from luthier.foundation.errors import DataError
from luthier.foundation.files import read_json
from luthier.model.config_changes import known_positions
from luthier.model.hub import MANIFEST
from luthier.model.loading import ModelSource

SHOWN_ROWS = 20
WEIGHTS = ".safetensors"


class Options(EngineOptions):
    """This engine has no settings of its own: it takes what the machine has."""

    name: Literal["transformers"] = "transformers"


def build(options: Options, opening: Opening) -> TransformersEngine:
    """The engine for a model, a run, a checkpoint or an adapter."""
    return TransformersEngine(opening)


class TransformersEngine:
    """Answers with a model that it reads at the first call.

    Args:
        opened: a model that is there already, as in training.
    """

    def __init__(self, opening: Opening, opened: OpenedModel | None = None) -> None:
        self._opening = opening
        self._opened = opened
        self.source = opened.source if opened is not None else find_speaker(opening.model)
        if opened is not None:
            self.tokenizer, self.renderer = opened.tokenizer, opened.renderer
        else:
            self.tokenizer, self.renderer = open_words(
                self.source,
                opening.template,
                trust_remote_code=opening.trust_remote_code,
                needs_template=False,
            )

    def identity(self) -> Mapping[str, Any]:
        """The model's fingerprint and how it is read, and the template's text."""
        template = self.renderer.chat_template if self.renderer is not None else ""
        opening, source = self._opening, self.source
        return {
            "engine": "transformers",
            "model": source.fingerprint,
            "weights": _sealed(source),
            "template": hashlib.sha256(template.encode()).hexdigest(),
            "dtype": str(read_in(source, opening.model.dtype, trust_remote_code=opening.trust_remote_code)),
            "device_map": opening.placement.device_map if opening.placement is not None else None,
            **source.settings.as_dict(),
        }

    def check(self, settings: GenerationSettings) -> None:
        """All settings act here."""

    def open(self) -> OpenedModel:
        """The model with its weights."""
        if self._opened is None:
            opening = self._opening
            model, dtype = open_weights(
                self.source,
                wish=opening.model.dtype,
                placement=opening.placement,
                trust_remote_code=opening.trust_remote_code,
            )
            if opening.placement is None:
                model = folded(model, self.source, dtype)
            stops = stop_tokens(self.source, model, self.renderer, self.tokenizer.eos_token_id)
            self._opened = OpenedModel(self.source, model, self.tokenizer, self.renderer, stops)
        return self._opened

    def answers(self, requests: Sequence[Request], settings: GenerationSettings) -> Iterator[Answer]:
        """See `Engine`.

        Raises:
            DataError: prompts that the template can't render.
        """
        from luthier.scoring.decoding import generate

        prompts = self.encode(requests)
        opened = self.open()
        length_of = {request.row: len(ids) for request, ids in zip(requests, prompts, strict=True)}
        for found in generate(
            opened.model,
            opened.tokenizer,
            prompts,
            settings,
            stop_token_ids=opened.stop_token_ids,
            rows=[request.row for request in requests],
            say=self._opening.say,
        ):
            length = length_of[found.row]
            reason = _too_long(length, settings, opened.model) if found.finish_reason == "prompt_too_long" else ""
            yield Answer(found.row, found.number, found.text, found.finish_reason, len(found.token_ids), length, reason)

    def encode(self, requests: Sequence[Request]) -> list[list[int]]:
        """Token ids of the prompts.

        Raises:
            DataError: prompts that the template can't render, or conversations where there is no template.
        """
        ids: dict[int, list[int]] = {}
        rendered: list[Any] = []
        places: list[int] = []
        problems: list[str] = []
        continued = text_to_continue(self.tokenizer)
        for place, request in enumerate(requests):
            if request.text is not None:
                ids[place] = continued(request.text)
                if not ids[place]:
                    problems.append(f"row {request.row + 1}: the text is empty, so there is nothing to continue")
                continue
            if self.renderer is None:
                raise DataError(
                    "the rows are conversations, but the model's tokenizer has no chat template.",
                    "Name one: --template chatml; `luthier data show --help` lists them.",
                )
            try:
                pieces = self.renderer.pieces(request.messages, add_generation_prompt=True, tools=request.tools)
            except RowError as error:
                problems.append(f"row {request.row + 1}: {error}")
                continue
            rendered.append([replace(piece, weight=None) for piece in pieces])
            places.append(place)
        if problems:
            shown = "\n".join(f"  - {problem}" for problem in problems[:SHOWN_ROWS])
            more = f"\n  and {len(problems) - SHOWN_ROWS:,} more" if len(problems) > SHOWN_ROWS else ""
            raise DataError(f"{len(problems):,} prompts can't be rendered:\n{shown}{more}", "Mend these rows.")
        if self.renderer is not None:
            ids |= {
                place: found for place, (found, _) in zip(places, self.renderer.encode_pieces(rendered), strict=True)
            }
        return [ids[place] for place in range(len(requests))]


def _sealed(source: ModelSource) -> dict[str, str]:
    """The hashes with which luthier sealed a model's weights: the fingerprint sees names, sizes and headers only, which
    are the same of a model that was trained anew in its place."""
    found: dict[str, str] = {}
    for folder in (source.base, *(part.folder for part in source.adapters)):
        if (folder / MANIFEST).is_file():
            files = read_json(folder / MANIFEST).get("files") or {}
            found |= {
                f"{len(found)} {name}": facts["sha256"] for name, facts in files.items() if name.endswith(WEIGHTS)
            }
    return found


def _too_long(length: int, settings: GenerationSettings, model: Any) -> str:
    known = known_positions(model.config)
    if settings.max_length is not None and length >= settings.max_length:
        return f"the prompt has {length:,} tokens, and max_length is {settings.max_length:,}"
    return f"the prompt has {length:,} tokens, and the model knows positions up to {known:,}"
