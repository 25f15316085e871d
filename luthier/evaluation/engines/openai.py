"""Any server that speaks OpenAI's chat completions (vLLM, llama.cpp, Ollama, a provider), several requests at a time.

The key comes from the environment and is never written or printed. A busy server (429, 5xx, no answer) is asked again, each
time after twice as long, or after as long as it says; what it refuses for a row (400, 413, 422) becomes that row's reason, and so
does what keeps going wrong with a row while another question is answered. A server that stays over its limit or its load stops
the run: a short question may fit where the row will fit only later.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from luthier.config.generation_section import GenerationSettings
from luthier.data.records import Message, ToolCall
from luthier.evaluation.engine import Answer, EngineOptions, Opening, Request
from luthier.foundation.errors import UserError
from luthier.foundation.network import asked_wait
from luthier.foundation.seeding import derive_seed

if TYPE_CHECKING:
    import httpx2

BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
FULL = frozenset({429, 529})  # over a limit or its load, which says nothing about the row
OF_A_ROW = frozenset({400, 413, 422})
BEYOND_OPENAI = ("top_k", "min_p", "repetition_penalty")
NEVER = ("max_length", "num_beams", "no_repeat_ngram_size")
LONGEST_SEED = 2**31  # some servers take no longer one
LONGEST_WAIT_SECONDS = 60.0


class Options(EngineOptions):
    """Where the server is, and how it is asked."""

    on_server: ClassVar[bool] = True
    name: Literal["openai"] = "openai"
    base_url: str = Field("https://api.openai.com/v1", description="Address of the server, up to /v1.")
    key_variable: str = Field(
        "OPENAI_API_KEY", description="Environment variable that holds the key; without a value none is sent."
    )
    parallel: int = Field(8, ge=1, description="Requests at a time.")
    timeout_seconds: float = Field(300.0, gt=0, description="Longest wait for one answer.")
    retries: int = Field(6, ge=0, description="How often a busy server is asked again for one answer.")
    first_wait_seconds: float = Field(1.0, gt=0, description="Before the first of these; doubled each time.")
    extended: bool = Field(
        False, description=f"The server knows {', '.join(BEYOND_OPENAI)} too, as vLLM and llama.cpp do."
    )

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError(f"must begin with http:// or https://, found {value!r}")
        return value.rstrip("/")


def build(options: Options, opening: Opening) -> OpenAIEngine:
    """The engine for a model by the name that the server gives it.

    Raises:
        UserError: settings of a model on this machine, which a server does not take.
    """
    model = opening.model
    set_too = [name for name in ("adapters", "quantization") if getattr(model, name)]
    set_too += ["a template"] if opening.template != "auto" else []
    set_too += ["a device map"] if opening.placement is not None else []
    set_too += ["--trust-remote-code"] if opening.trust_remote_code else []
    if set_too:
        raise UserError(
            f"{' and '.join(set_too)} would have no effect: the engine openai asks {options.base_url}, which has its own.",
            "Leave it out.",
        )
    return OpenAIEngine(options, model.name)


@dataclass(frozen=True, slots=True)
class _Failed(Exception):
    """A row that the server refuses."""

    reason: str


class OpenAIEngine:
    """Asks a server."""

    def __init__(self, options: Options, model: str) -> None:
        self._options = options
        self._model = model
        self._ending = threading.Event()

    def identity(self) -> Mapping[str, Any]:
        """The server's address and its name of the model: what stands behind them nobody can tell."""
        return {"engine": "openai", "base_url": self._options.base_url, "model": self._model}

    def check(self, settings: GenerationSettings) -> None:
        """Refuse what the protocol has no word for."""
        changed = settings.model_dump(exclude_defaults=True)
        refused = [name for name in NEVER if name in changed]
        refused += [] if self._options.extended else [name for name in BEYOND_OPENAI if name in changed]
        if refused:
            extended = any(name in BEYOND_OPENAI for name in refused)
            hint = " A server that knows them (vLLM, llama.cpp): engine option extended: true." if extended else ""
            raise UserError(f"the engine openai can't ask for {', '.join(refused)}.", f"Leave it out.{hint}")

    def answers(self, requests: Sequence[Request], settings: GenerationSettings) -> Iterator[Answer]:
        """See `Engine`. A row that the server refuses, or fails on again and again, gets an answer with the reason.

        Raises:
            UserError: the server can't be reached, refuses the key, does not know the model, or stays busy.
        """
        import httpx2

        key = os.environ.get(self._options.key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=self._options.parallel)
        client = httpx2.Client(headers=headers, timeout=self._options.timeout_seconds, limits=limits)
        with client:
            pool = ThreadPoolExecutor(self._options.parallel)
            try:
                waiting = [
                    pool.submit(self._answer, client, request, number, settings)
                    for request in requests
                    for number in range(settings.num_return_sequences)
                ]
                for done in as_completed(waiting):
                    yield done.result()
            finally:  # an error, or nobody who wants more, ends the others
                self._ending.set()
                pool.shutdown(wait=True, cancel_futures=True)
                self._ending.clear()

    def _answer(self, client: httpx2.Client, request: Request, number: int, settings: GenerationSettings) -> Answer:
        try:
            found = self._ask(client, *self._body(request, number, settings))
        except _Failed as failed:
            return Answer(request.row, number, "", "error", 0, reason=failed.reason)
        usage = found.get("usage")
        tokens, prompt_tokens = (_count(usage, key) for key in ("completion_tokens", "prompt_tokens"))
        choice = found["choices"][0]
        reason = "length" if choice.get("finish_reason") == "length" else "stop"
        text = _text(choice, plain=request.text is not None)
        if text is None:
            refused = f"the server's answer holds no text: {json.dumps(choice)[:300]}"
            return Answer(request.row, number, "", "error", 0, reason=refused)
        return Answer(request.row, number, text, reason, tokens or 0, prompt_tokens)

    def _body(self, request: Request, number: int, settings: GenerationSettings) -> tuple[str, dict[str, Any]]:
        """The path and what is sent."""
        body: dict[str, Any] = {"model": self._model, "max_tokens": settings.max_new_tokens}
        if settings.do_sample:
            seed = derive_seed(settings.seed, "generation", request.row, number) % LONGEST_SEED
            body |= {"temperature": settings.temperature, "top_p": settings.top_p, "seed": seed}
        else:
            body["temperature"] = 0
        if settings.stop_strings:
            body["stop"] = list(settings.stop_strings)
        changed = settings.model_dump(exclude_defaults=True)
        body |= {name: changed[name] for name in BEYOND_OPENAI if name in changed}
        if request.text is not None:
            return "/completions", {**body, "prompt": request.text}
        return "/chat/completions", {**body, **request.as_dict(), "messages": _messages(request.messages)}

    def _ask(self, client: httpx2.Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer, however often it takes."""
        import httpx2

        url = self._options.base_url + path
        wait = self._options.first_wait_seconds
        full = False  # by its last answer
        for left in range(self._options.retries, -1, -1):
            asked: float | None = None
            try:
                response = client.post(url, json=body)
            except httpx2.HTTPError as error:
                trouble, full = f"{type(error).__name__}: {error}".rstrip(": "), False
            else:
                if response.status_code not in BUSY:
                    return self._read(response, url)
                trouble = f"{response.status_code}: {_said(response)}"
                full = response.status_code in FULL
                asked = asked_wait(response.headers.get("retry-after"))
            if self._ending.is_set():
                break
            if left:
                # a little more by chance: requests that failed together should not come back together
                self._ending.wait(min(max(wait, asked or 0.0), LONGEST_WAIT_SECONDS) * random.uniform(1.0, 1.25))  # noqa: S311
                wait *= 2
        attempts = f"no answer in {self._options.retries + 1} attempts; the last time: {trouble}"
        if not full and not self._ending.is_set() and self._answers_others(client, path):
            raise _Failed(f"the server gives {attempts}")
        raise UserError(
            f"{url} gave {attempts}.",
            ("Ask less at a time (parallel) or more often (retries)." if full else "Is the server up?")
            + " The same command goes on with the rows that are left.",
        )

    def _answers_others(self, client: httpx2.Client, path: str) -> bool:
        """Whether the server answers the shortest question: then it is up, and it is the row that it can't answer."""
        import httpx2

        asked = {"prompt": "1"} if path == "/completions" else {"messages": [{"role": "user", "content": "1"}]}
        body = {"model": self._model, "max_tokens": 1, **asked}
        try:
            return client.post(self._options.base_url + path, json=body).status_code == 200
        except httpx2.HTTPError:
            return False

    def _read(self, response: httpx2.Response, url: str) -> dict[str, Any]:
        if response.status_code in OF_A_ROW:
            raise _Failed(f"the server refuses it ({response.status_code}): {_said(response)}")
        if response.status_code in (401, 403):
            held = "holds a key" if os.environ.get(self._options.key_variable) else "is not set"
            raise UserError(
                f"{url} refuses access ({response.status_code}); the variable {self._options.key_variable} {held}.",
                f"Put the server's key into {self._options.key_variable}, or name another variable: engine option key_variable.",
            )
        if response.status_code != 200:
            raise UserError(
                f"{url} answers {response.status_code}: {_said(response)}",
                f"Is base_url right, and does the server know the model {self._model!r}?",
            )
        try:
            found = response.json()
            is_completion = isinstance(found["choices"][0], dict)
        except (ValueError, KeyError, IndexError, TypeError):
            is_completion = False
        if not is_completion:
            raise UserError(
                f"{url} answers with something that is no completion: {response.text[:200]!r}.",
                "base_url must be the address of an OpenAI-compatible server, up to /v1.",
            )
        answer: dict[str, Any] = found
        return answer


def _messages(turns: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns as the protocol has them: a call's arguments are JSON in text, it has an id, and the turn that answers it names it.

    See "Create chat completion" in the reference of OpenAI's API.
    """
    values = [turn.as_dict() for turn in _with_ids(turns)]
    for value in values:
        for call in value.get("tool_calls", ()):
            function = call["function"]
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return values


def _with_ids(turns: Sequence[Message]) -> list[Message]:
    """The turns with ids where the row gives none: an answer belongs to the next call that nothing has answered, of its own
    function where it names one."""
    given = {call.id for turn in turns for call in turn.tool_calls} | {turn.tool_call_id for turn in turns}
    fresh = (name for number in itertools.count() if (name := f"call_{number}") not in given)
    found: list[Message] = []
    waiting: list[ToolCall] = []
    for turn in turns:
        if turn.tool_calls:
            waiting = [call if call.id else replace(call, id=next(fresh)) for call in turn.tool_calls]
            found.append(replace(turn, tool_calls=tuple(waiting)))
        elif turn.role == "tool" and waiting and not turn.tool_call_id:
            answered = next((call for call in waiting if call.name == turn.name), waiting[0])
            waiting.remove(answered)
            found.append(replace(turn, tool_call_id=answered.id))
        else:
            waiting = [call for call in waiting if call.id != turn.tool_call_id]
            found.append(turn)
    return found


def _text(choice: Mapping[str, Any], *, plain: bool) -> str | None:
    """What a choice says: its text; or its message's, and where that only calls tools, the calls as JSON; None where it has
    no message or text at all, as a filter may leave it."""
    if plain:
        return choice["text"] if isinstance(choice.get("text"), str) else None
    message = choice.get("message")
    if not isinstance(message, Mapping):
        return None
    content, calls = message.get("content"), message.get("tool_calls")
    if not content and isinstance(calls, list) and calls:
        functions = [call.get("function") for call in calls if isinstance(call, Mapping)]
        return json.dumps(functions, ensure_ascii=False)
    return "" if content is None else content if isinstance(content, str) else None


def _count(usage: Any, key: str) -> int | None:
    """A number of tokens, where the server gives one."""
    found = usage.get(key) if isinstance(usage, Mapping) else None
    return found if isinstance(found, int) else None


def _said(response: httpx2.Response) -> str:
    """What a server says is wrong, in a line."""
    try:
        error = response.json().get("error")
        text = error.get("message") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = None
    return " ".join(str(text or response.text).split())[:300] or "(nothing)"
