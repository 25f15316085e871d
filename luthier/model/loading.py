"""From a config's model to tokenizer, config and weights. Everything that can be refused before weights are read, is."""

from __future__ import annotations

import contextlib
import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.schema import ModelConfig
from luthier.foundation.devices import fast_precisions
from luthier.foundation.errors import ModelError
from luthier.model.adapters import check_shapes, put_on
from luthier.model.config_changes import changed, check_shapes_kept, sized_for
from luthier.model.embeddings import set_rows
from luthier.model.finding import ModelSource, base_of_run, find
from luthier.model.heads import HEAD_WEIGHTS, SequenceHead, head_modules, saved_head, with_head
from luthier.model.inspection import MENDING, header_of, weight_files
from luthier.model.placement import Placement, dispatch, is_spread, resolved
from luthier.model.quantization import (
    check_backend,
    check_saved,
    compute_dtype,
    dequantized,
    leave_the_file,
    loading_settings,
    saved_in,
    settle,
)
from luthier.model.quiet import quiet_bars, quiet_loading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from luthier.config.model_section import QuantizationConfig

__all__ = [  # with what is found before anything is loaded
    "ModelSource",
    "base_of_run",
    "check_quantization",
    "choose_dtype",
    "config_at",
    "config_of",
    "find",
    "fresh_weights",
    "grow_embeddings",
    "load",
    "load_tokenizer",
    "skeleton",
    "tokenizer_at",
    "weights_at",
]

QUIET_BELOW_BYTES = 2 * 1024**3  # smaller models load in a moment and need no bar


def check_quantization(source: ModelSource, device: torch.device, *, training: bool) -> None:
    """Whether this machine can compute with a base in 4 or 8 bits; nothing where the weights are plain.

    Raises:
        ModelError, MissingExtraError: it can't; says what is missing.
    """
    if source.saved_quantization is not None:
        check_saved(source.base, source.saved_quantization, device, training=training)
    elif source.settings.quantization is not None:
        check_backend(source.settings.quantization, device)


def load_tokenizer(model: ModelConfig, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model by name. Raises ModelError if the folder has none that loads."""
    return tokenizer_at(find(model).tokenizer, trust_remote_code=trust_remote_code)


def tokenizer_at(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises ModelError if there is none that loads."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(
            f"the tokenizer in {folder} does not load: {_first_line(error)}",
            "The folder needs tokenizer.json (or the family's own files) and tokenizer_config.json."
            + _remote_code_hint(error),
        ) from error
    return tokenizer


def config_at(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The model's config; encoder-decoder models are refused."""
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(
            f"config.json in {folder} does not load: {_first_line(error)}",
            "A newer model may need a newer transformers." + _remote_code_hint(error),
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{folder} holds an encoder-decoder model ({config.model_type}); luthier trains decoder-only models.",
            "Choose a causal language model.",
        )
    return config


def config_of(source: ModelSource, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The base's config with what the run, or the adapter, changes about it.

    Raises:
        ModelError: changes that the config refuses, or that its weights do not fit.
    """
    config, settings = config_at(source.base, trust_remote_code=trust_remote_code), source.settings
    made = changed(config, settings.config_overrides, settings.rope_scaling)
    if source.from_scratch:
        return sized_for(made, tokenizer_at(source.tokenizer, trust_remote_code=trust_remote_code))
    if settings.config_overrides:
        check_shapes_kept(config, made, partial(skeleton, trust_remote_code=trust_remote_code))
    return made


def choose_dtype(wish: str, config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """The precision that weights are loaded in: the model's own where the device does it fast, else float32."""
    import torch

    if wish != "auto":
        chosen: torch.dtype = getattr(torch, wish)
        return chosen
    own = str(getattr(config.get_text_config(), "dtype", None) or "float32").removeprefix("torch.")
    return getattr(torch, own) if own in fast_precisions(device) else torch.float32


def weights_at(
    folder: Path,
    dtype: torch.dtype,
    *,
    head: SequenceHead | None = None,
    seed: int = 0,
    config: PreTrainedConfig | None = None,
    quantization: QuantizationConfig | None = None,
    device: torch.device | None = None,
    placement: Placement | None = None,
    adapter: Path | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The causal language model in a folder, in evaluation mode; or its backbone with a head.

    Args:
        dtype: of all weights but the quantized ones.
        head: made anew where the folder's model has none. seed: torch's, before that.
        config: in place of the folder's own.
        quantization: for plain weights to be quantized while they are read.
        device: where quantized weights go, which do not move afterwards; plain ones are on the CPU.
        placement: where modules lie, in place of the CPU.
        adapter: that is to bring the head, all of it that the folder lacks; None: it is to be trained.

    Raises:
        ModelError: weights that do not load, or are not all there; modules that can't be placed so.
    """
    import torch

    more: dict[str, Any] = {}
    own = config or config_at(folder, trust_remote_code=trust_remote_code)
    if head is not None:
        torch.manual_seed(seed)
    if head is not None or config is not None:
        more["config"] = with_head(own, head) if head is not None else copy.deepcopy(own)
    is_quantized = quantization is not None or saved_in(folder) is not None
    if is_quantized:
        more["device_map"] = {"": device or "cpu"}
    elif placement is not None:
        more["device_map"] = resolved(placement, skeleton(own, head=head, trust_remote_code=trust_remote_code), dtype)
        more["offload_folder"] = placement.offload_folder
    if quantization is not None:
        bare = skeleton(own, head=head, trust_remote_code=trust_remote_code)
        more["quantization_config"] = loading_settings(quantization, dtype, bare, device, head is not None)
    model, report = _read(_kind(head), folder, dtype=dtype, trust_remote_code=trust_remote_code, **more)
    if is_quantized:
        settle(model, compute_dtype(quantization, dtype) if quantization is not None else dtype)
        leave_the_file(model)
    _check_complete(model, report, folder, head, adapter)
    return model


def _read(kind: Any, folder: Path, **arguments: Any) -> tuple[PreTrainedModel, Any]:
    """A model by transformers' from_pretrained, and its report on missing weights. Raises ModelError."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with contextlib.ExitStack() as quiet:
        if size < QUIET_BELOW_BYTES:
            quiet.enter_context(quiet_bars())
        if "config" in arguments:  # a head that is new, layers that are left out
            quiet.enter_context(quiet_loading())
        try:
            model, report = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **arguments)
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            raise ModelError(
                f"the model in {folder} does not load: {_first_line(error)}",
                "`luthier models verify` checks its files." + _remote_code_hint(error),
            ) from error
    return model, report


def _check_complete(
    model: PreTrainedModel, report: Any, folder: Path, head: SequenceHead | None, adapter: Path | None
) -> None:
    """Raise ModelError for weights that were not there: transformers fills them with random numbers and goes on."""
    absent = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if head is not None and saved_head(folder) is None:
        new = tuple(f"{name}." for name in head_modules(model))
        of_head = [name for name in absent if name.startswith(new)]
        absent = [name for name in absent if name not in of_head]
        brought = _tensors_of(adapter) if adapter is not None else of_head
        unknown = [name for name in of_head if not any(f".{other}".endswith(f".{name}") for other in brought)]
        if unknown:
            raise ModelError(
                f"neither {folder} nor the adapter {adapter} has {', '.join(unknown[:6])}, which are of "
                f"{type(model).__name__}'s head: it would compute with random numbers.",
                "Train the adapter again, with every module of the head among those it saves.",
            )
    if absent:
        raise ModelError(
            f"the weights in {folder} lack {len(absent)} of {type(model).__name__}'s tensors, or have them in another "
            f"shape: {', '.join(absent[:6])}{' ...' if len(absent) > 6 else ''}.",
            "Fetch the model again; a model made for another task (classification, embedding) has no head to train.",
        )


def _tensors_of(adapter: Path) -> list[str]:
    """Names of an adapter's tensors, and of the head's where they have a file of their own."""
    files = [*weight_files(adapter), *adapter.glob(HEAD_WEIGHTS)]
    return [name for file in files for name in header_of(file)]


def fresh_weights(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    head: SequenceHead | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A model with random weights, of the size that its config's initializer_range says; the same for the same seed."""
    import torch

    torch.manual_seed(seed)
    model: PreTrainedModel = _kind(head).from_config(
        with_head(config, head) if head is not None else config, dtype=dtype, trust_remote_code=trust_remote_code
    )
    return model.eval()


def skeleton(
    config: PreTrainedConfig, *, head: SequenceHead | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model without weights (on torch's meta device): for names and counts before anything is read."""
    import torch

    # its own: rows for new tokens change the config, whose weights are still to be read
    config = with_head(config, head) if head is not None else copy.deepcopy(config)
    with torch.device("meta"):
        model: PreTrainedModel = _kind(head).from_config(config, trust_remote_code=trust_remote_code)
    model.tie_weights()
    return model


def _kind(head: SequenceHead | None) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if head is None else AutoModelForSequenceClassification


def grow_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give a model rows for tokens it never saw, as many as its tokenizer has; True if any were added.

    Raises:
        ModelError: the model's modules lie on several devices, where none can be exchanged.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= rows:
        return False
    if is_spread(model):
        raise ModelError(
            f"the tokenizer has {len(tokenizer):,} tokens, the model's embedding {rows:,}, and a model whose modules lie on "
            "several devices can't be given more.",
            "Leave out --device-map, or name a --template whose tokens the model has.",
        )
    set_rows(model, len(tokenizer))
    return True


def load(
    source: ModelSource,
    dtype: torch.dtype,
    *,
    device: torch.device | None = None,
    plain: bool = False,
    placement: Placement | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Base and adapters together, for generation and export: a transformers model, or a peft model around one.

    Args:
        dtype: of all weights but the quantized ones.
        device: where to put it; None: the CPU.
        placement: where its modules lie, in place of one device; a quantized base lies on one.
        plain: have the base in `dtype` though it was quantized in training, for an adapter to be merged into it; one that
            mends the quantization gets the values that its bits stand for.

    Raises:
        ModelError: weights that do not load, or an adapter made for another base.
    """
    head = saved_head(source.adapter, source.base)
    words = config = None
    if source.settings.config_overrides or source.settings.rope_scaling is not None or source.adapter is not None:
        config = config_of(source, trust_remote_code=trust_remote_code)
    if config is not None and source.adapter is not None:
        bare = skeleton(config, head=head, trust_remote_code=trust_remote_code)
        words = tokenizer_at(source.tokenizer, trust_remote_code=trust_remote_code)
        grow_embeddings(bare, words)
        check_shapes(bare, source.adapters)
    mends = any((part.folder / MENDING).is_file() for part in source.adapters)
    quantization = None if plain and not mends else source.settings.quantization
    if quantization is not None and len(source.adapters) > 1:
        raise ModelError(
            f"{len(source.adapters)} adapters are put on a base in {quantization}, and all but the last would be merged into "
            "quantized weights.",
            "Leave the quantization out, or write them as one first: `luthier export MODEL OUT --adapter ...`.",
        )
    if placement is not None and (quantization is not None or source.saved_quantization is not None):
        raise ModelError("a quantized base lies on one device: it has no device map.", "Leave --device-map out.")
    model: Any = weights_at(
        source.base,
        dtype,
        head=head,
        config=config,
        quantization=quantization,
        device=device,
        placement=placement if source.adapter is None else None,
        adapter=source.adapter,
        trust_remote_code=trust_remote_code,
    )
    already = source.saved_quantization is not None and (plain or len(source.adapters) > 1)
    if already or (plain and quantization is not None):
        model = dequantized(model, dtype)
    if words is not None:
        grow_embeddings(model, words)
        inner, model = model, put_on(model, source.adapters, source.combine)
        if placement is not None:
            return dispatch(model, inner, resolved(placement, inner, dtype), placement.offload_folder)
    return model if device is None or placement is not None else model.to(device)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _remote_code_hint(error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return " It brings its own Python code: read that, then add --trust-remote-code to the command."
    return ""
