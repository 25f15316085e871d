"""vLLM on GPUs, in this process (extra `vllm`). Not measured: no machine with a GPU was at hand when it was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from luthier.config.generation_section import GenerationSettings
from luthier.evaluation.engine import Answer, EngineOptions, Opening, Request
from luthier.evaluation.engines.transformers import TransformersEngine
from luthier.evaluation.opening import read_in, stop_tokens
from luthier.foundation.errors import ModelError, UserError, import_extra
from luthier.foundation.files import read_json
from luthier.foundation.seeding import derive_seed

NEVER = ("num_beams", "no_repeat_ngram_size", "max_length")
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
ROWS_AT_A_TIME = 256  # of which the finished ones are kept together


class Options(EngineOptions):
    """vLLM's own settings that a run most often needs."""

    name: Literal["vllm"] = "vllm"
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share each layer.")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of a GPU's memory that vLLM may take.")


def build(options: Options, opening: Opening) -> VllmEngine:
    """The engine for a whole model, or one LoRA adapter on its base.

    Raises:
        MissingExtraError: vLLM is not installed.
        ModelError: several adapters, or a quantization that is made while reading.
        UserError: a device map, which vLLM makes itself.
    """
    import_extra("vllm", extra="vllm", purpose="the engine vllm")
    if opening.placement is not None:
        raise UserError("--device-map has no effect on the engine vllm.", "Set its tensor_parallel_size.")
    return VllmEngine(options, opening)


class VllmEngine:
    """Tokens in, tokens out: prompts are rendered and tokenized here, as in training."""

    def __init__(self, options: Options, opening: Opening) -> None:
        self._options = options
        self._opening = opening
        self._words = TransformersEngine(opening)
        source = self._words.source
        if len(source.adapters) > 1 or source.settings.quantization is not None:
            raise ModelError(
                "the engine vllm takes a whole model, or one adapter on a plain base.",
                "Write one first: `luthier export MODEL OUT --format merged`.",
            )

    def identity(self) -> Mapping[str, Any]:
        """As the engine transformers, under its own name: the last bits differ."""
        return {**self._words.identity(), "engine": "vllm"}

    def check(self, settings: GenerationSettings) -> None:
        """Refuse what vLLM has no word for."""
        refused = [name for name in NEVER if name in settings.model_dump(exclude_defaults=True)]
        if refused:
            raise UserError(f"the engine vllm can't do {', '.join(refused)}.", "Leave it out, or use transformers.")

    def answers(self, requests: Sequence[Request], settings: GenerationSettings) -> Iterator[Answer]:
        """See `Engine`."""
        vllm: Any = import_extra("vllm", extra="vllm", purpose="the engine vllm")
        source = self._words.source
        trusted = self._opening.trust_remote_code
        wish = self._opening.model.dtype  # unless one is named vLLM chooses: it takes 16 bits for a model saved in 32
        dtype = wish if wish == "auto" else read_in(source, wish, trust_remote_code=trusted)
        llm = vllm.LLM(
            str(source.base),
            tokenizer=str(source.tokenizer),
            dtype=str(dtype).removeprefix("torch."),
            tensor_parallel_size=self._options.tensor_parallel_size,
            gpu_memory_utilization=self._options.gpu_memory_utilization,
            enable_lora=source.adapter is not None,
            max_lora_rank=_lora_rank(source.adapter),
            enable_prefix_caching=True,
            trust_remote_code=trusted,
        )
        adapter = None
        if source.adapter is not None:
            lora: Any = import_extra("vllm.lora.request", package="vllm", extra="vllm", purpose="the engine vllm")
            adapter = lora.LoRARequest("adapter", 1, str(source.adapter))
        prompts = self._words.encode(requests)
        stops = stop_tokens(source, None, self._words.renderer, self._words.tokenizer.eos_token_id)
        for start in range(0, len(requests), ROWS_AT_A_TIME):
            chosen = [
                (request, ids, number)
                for request, ids in zip(requests[start : start + ROWS_AT_A_TIME], prompts[start:], strict=False)
                for number in range(settings.num_return_sequences)
            ]
            outputs = llm.generate(
                [{"prompt_token_ids": ids} for _, ids, _ in chosen],
                [vllm.SamplingParams(**_parameters(settings, stops, request.row, n)) for request, _, n in chosen],
                lora_request=adapter,
                use_tqdm=False,
            )
            for (request, ids, number), output in zip(chosen, outputs, strict=True):
                found = output.outputs[0]
                reason = "length" if found.finish_reason == "length" else "stop"
                yield Answer(request.row, number, found.text, reason, len(found.token_ids), len(ids))


def _lora_rank(adapter: Path | None) -> int:
    """The least rank that vLLM knows and the adapter fits into."""
    own = int(read_json(adapter / "adapter_config.json").get("r") or 0) if adapter is not None else 0
    return next((rank for rank in LORA_RANKS if rank >= own), LORA_RANKS[-1])


def _parameters(settings: GenerationSettings, stops: Sequence[int], row: int, number: int) -> dict[str, Any]:
    """vLLM's SamplingParams."""
    values: dict[str, Any] = {
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature if settings.do_sample else 0.0,
        "repetition_penalty": settings.repetition_penalty,
        "stop": list(settings.stop_strings) or None,
        "stop_token_ids": list(stops),
    }
    if settings.do_sample:
        values |= {"top_k": settings.top_k, "top_p": settings.top_p, "min_p": settings.min_p}
        values["seed"] = derive_seed(settings.seed, "generation", row, number)
    return values
