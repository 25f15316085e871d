"""`luthier chat`: talk to a model, with history and streaming, or ask it one thing, beside its base if wanted."""

from __future__ import annotations

import contextlib
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

    from luthier.config.generation_section import GenerationSettings
    from luthier.config.schema import ModelConfig
    from luthier.data.rendering import Renderer
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
    settings: GenerationSettings
    base: Any = None

    def answer(
        self, messages: list[Message], on_text: Callable[[str], None] | None = None, *, as_base: bool = False
    ) -> str:
        """The answer to a conversation that ends with a user's turn."""
        from luthier.model.merging import without_adapter
        from luthier.scoring.decoding import answer

        model = self.model
        context: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if as_base and self.base is not None:
            model = self.base
        elif as_base:
            context = without_adapter(self.model)
        with context:
            prompt_ids = self.renderer.prompt_ids(messages)
            return answer(model, self.tokenizer, prompt_ids, self.settings, self.stop_token_ids, on_text).text


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
        UserError: the model can't be loaded, has no chat template, has no base to compare with, or settings don't fit.
    """
    from luthier.commands.predict import checked
    from luthier.config.generation_section import GenerationSettings
    from luthier.model.placement import parse

    _refuse_idle(temperature, top_p, seed)
    sampled = {"do_sample": True, "temperature": temperature, "top_p": top_p, "seed": seed} if temperature > 0 else {}
    given = {"max_new_tokens": max_new_tokens, **sampled}
    settings: GenerationSettings = checked(GenerationSettings, given, "the generation")
    talker = open_talker(
        named_model(model, adapters, combine, quantization),
        settings,
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


def _refuse_idle(temperature: float, top_p: float, seed: int) -> None:
    """Raise UserError where an option acts on sampling and nothing is drawn."""
    idle = [f"--top-p {top_p:g}"] if top_p < 1 else []
    idle += [f"--seed {seed}"] if seed else []
    if temperature == 0 and idle:
        raise UserError(
            f"{' and '.join(idle)} would act on sampling, and at --temperature 0 the likeliest token is taken.",
            f"Give a temperature too, or leave {'them' if len(idle) > 1 else 'it'} out.",
        )


def open_talker(
    model: ModelConfig,
    settings: GenerationSettings,
    *,
    template: str = "auto",
    compare_base: bool = False,
    placement: Placement | None = None,
    trust_remote_code: bool = False,
) -> Talker:
    """Load what it takes to talk."""
    from luthier.evaluation.opening import find_speaker, open_weights, open_words, stop_tokens
    from luthier.foundation.devices import choose_device
    from luthier.model import loading

    source = find_speaker(model)
    tokenizer, renderer = open_words(source, template, trust_remote_code=trust_remote_code)
    assert renderer is not None
    base_source = _base_to_load(source) if compare_base else None
    tuned, dtype = open_weights(source, placement=placement, trust_remote_code=trust_remote_code)
    base = None
    if base_source is not None:
        base = loading.load(
            base_source, dtype, device=choose_device(), placement=placement, trust_remote_code=trust_remote_code
        ).eval()
        loading.grow_embeddings(base, tokenizer)  # it is asked in the tuned model's words, some of which may be new
    return Talker(tuned, tokenizer, renderer, stop_tokens(source, tuned, renderer), settings, base)


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
