"""`luthier chat`: talk to a model, with history and streaming, or ask it one thing, beside its base if wanted."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from luthier.commands.verb_options import named_model
from luthier.config.adapters_section import STACK
from luthier.data.records import Message
from luthier.foundation.errors import ModelError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.config.schema import ModelConfig
    from luthier.data.rendering import Renderer
    from luthier.model.generation import Sampling
    from luthier.model.loading import ModelSource
    from luthier.model.placement import Placement

HELP = "Type a message and press Enter. /new starts over, /exit or Ctrl-D ends; Ctrl-C stops an answer."


@dataclass(frozen=True)
class ChatResult:
    """One answer; base_answer is the base model's, where it was asked for."""

    prompt: str
    answer: str
    base_answer: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Talker:
    """A loaded model that answers.

    Args:
        base: answers as the base model does, or None.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    stop_token_ids: tuple[int, ...]
    sampling: Sampling
    base: Any = None

    def answer(
        self, messages: list[Message], on_text: Callable[[str], None] | None = None, *, as_base: bool = False
    ) -> str:
        """The answer to a conversation that ends with a user's turn."""
        from luthier.model.generation import answer
        from luthier.model.merging import without_adapter

        model = self.model
        context: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if as_base and self.base is not None:
            model = self.base
        elif as_base:
            context = without_adapter(self.model)
        with context:
            return answer(
                model, self.tokenizer, self.renderer.prompt_ids(messages), self.sampling, self.stop_token_ids, on_text
            )


def chat(
    model: str,
    *,
    prompt: str | None = None,
    system: str | None = None,
    compare_base: bool = False,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    template: str = "auto",
    adapters: Sequence[str] = (),
    combine: str = STACK,
    quantization: str | None = None,
    device_map: str | None = None,
    offload_folder: str | None = None,
    trust_remote_code: bool = False,
) -> ChatResult | None:
    """Answer one prompt, or talk until the user ends it (then None is returned).

    Args:
        adapters: put on the model, each PATH or PATH=WEIGHT. combine: how several become one, as model.combine.
        quantization: nf4, fp4 or int8 for a plain base. device_map: see `luthier.model.placement.parse`.

    Raises:
        UserError: the model can't be loaded, has no chat template, or has no base to compare with.
    """
    from luthier.model.generation import Sampling
    from luthier.model.placement import parse

    sampling = Sampling(max_new_tokens, temperature, top_p, seed)
    talker = open_talker(
        named_model(model, adapters, combine, quantization),
        sampling,
        template=template,
        compare_base=compare_base,
        placement=parse(device_map, offload_folder),
        trust_remote_code=trust_remote_code,
    )
    opening = [Message("system", system)] if system else []
    if prompt is None:
        _converse(talker, opening, compare_base)
        return None
    messages = [*opening, Message("user", prompt)]
    if compare_base:
        result = ChatResult(prompt, talker.answer(messages), talker.answer(messages, as_base=True))
        _side_by_side(result)
        return result
    answer = talker.answer(messages, _write)
    print(flush=True)
    return ChatResult(prompt, answer, None)


def open_talker(
    model: ModelConfig,
    sampling: Sampling,
    *,
    template: str = "auto",
    compare_base: bool = False,
    placement: Placement | None = None,
    trust_remote_code: bool = False,
) -> Talker:
    """Load what it takes to talk."""
    from luthier.data.rendering import Renderer
    from luthier.foundation.devices import choose_device
    from luthier.model import loading
    from luthier.model.heads import saved_head

    source = loading.find(model)
    head = saved_head(source.adapter, source.base)
    if head is not None:
        raise ModelError(
            f"{model.name} was trained for {head.problem.replace('_', ' ')}: it gives "
            f"{', '.join(head.labels) or 'a number'} and can't talk.",
            "Its predictions on data.validation and data.test stand in the run's predictions.jsonl; for other texts load "
            "final/ in transformers (docs/classification.md).",
        )
    model_config = loading.config_of(source, trust_remote_code=trust_remote_code)
    tokenizer = loading.tokenizer_at(source.tokenizer, trust_remote_code=trust_remote_code)
    renderer = Renderer(tokenizer, template)
    base_source = _base_to_load(source) if compare_base else None
    device = choose_device()
    loading.check_quantization(source, device, training=False)
    dtype = loading.choose_dtype("auto", model_config, device)
    tuned = loading.load(source, dtype, device=device, placement=placement, trust_remote_code=trust_remote_code).eval()
    base = None
    if base_source is not None:
        base = loading.load(
            base_source, dtype, device=device, placement=placement, trust_remote_code=trust_remote_code
        ).eval()
        loading.grow_embeddings(base, tokenizer)  # it is asked in the tuned model's words, some of which may be new
    return Talker(tuned, tokenizer, renderer, _stops(source, tuned, renderer), sampling, base)


def _stops(source: ModelSource, model: Any, renderer: Renderer) -> tuple[int, ...]:
    """What ends an answer: the template's stop tokens, and those in the generation_config beside the model."""
    kept = source.adapter / "generation_config.json" if source.adapter is not None else None
    if kept is not None and kept.exists():
        named = json.loads(kept.read_text(encoding="utf-8")).get("eos_token_id")
    else:
        named = getattr(model.generation_config, "eos_token_id", None)
    ids = [named] if isinstance(named, int) else list(named or ())
    return tuple(dict.fromkeys([*renderer.stop_token_ids, *ids]))


def _base_to_load(source: ModelSource) -> ModelSource | None:
    """The base model to load beside the tuned one; None where switching the adapter off gives it.

    Raises:
        UserError: a whole model that no run remembers the base of.
    """
    from luthier.model.loading import ModelSource, base_of_run

    if source.adapter is not None:
        # trained biases are the base's own parameters, and what lies under an adapter is merged: both stay when it is
        # switched off
        stays = any(part.settings.get("bias", "none") != "none" for part in source.adapters)
        stacked = len(source.adapters) > 1 and source.combine.name == STACK
        return source.only(()) if stays or stacked else None
    base = base_of_run(source.base)
    if base is None:
        raise UserError(
            f"{source.base} is a whole model outside of a run, so its base is not known.",
            "--compare-base takes a run, a checkpoint in a run, or an adapter.",
        )
    return ModelSource(base, None, str(base), None, "")


def _converse(talker: Talker, opening: list[Message], compare_base: bool) -> None:
    """Ask and answer until the user ends it."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() then has a history and can be edited
    print(HELP, file=sys.stderr)
    messages = list(opening)
    while True:
        try:
            text = input("\nyou> ").strip()
        except (EOFError, KeyboardInterrupt):
            print(flush=True)
            return
        if text in ("/exit", "/quit"):
            return
        if text == "/new":
            messages = list(opening)
            print("(a new conversation)", flush=True)
            continue
        if not text:
            continue
        messages.append(Message("user", text))
        try:
            if compare_base:
                print(f"base> {talker.answer(messages, as_base=True)}", flush=True)
            print("model> ", end="", flush=True)
            answer = talker.answer(messages, _write)
        except (KeyboardInterrupt, ModelError) as error:
            what = f"{error.problem} {error.remedy}" if isinstance(error, ModelError) else "stopped"
            print(f"\n({what}; your message was taken back)", flush=True)
            messages.pop()
            continue
        print(flush=True)
        messages.append(Message("assistant", answer))


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _side_by_side(result: ChatResult) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("base", "tuned", title=Text(result.prompt), title_justify="left", expand=True)
    for column in table.columns:
        column.ratio, column.overflow = 1, "fold"  # Chinese has no spaces to break at
    table.add_row(Text(result.base_answer or ""), Text(result.answer))
    Console().print(table)
