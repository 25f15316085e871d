"""From a config's model to tokenizer, config and weights. Everything that can be refused before weights are read, is."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.adapters_section import STACK, CombineConfig
from luthier.config.schema import ModelConfig
from luthier.foundation.devices import fast_precisions
from luthier.foundation.errors import ModelError, UserError
from luthier.foundation.files import read_json
from luthier.model.adapters import AdapterPart, adapter_parts, check_base, check_shapes, mark, put_on
from luthier.model.heads import SequenceHead, head_modules, saved_head, with_head
from luthier.model.inspection import fingerprint, is_adapter
from luthier.model.quiet import quiet_bars, quiet_loading
from luthier.model.resolving import locate, resolve

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

QUIET_BELOW_BYTES = 2 * 1024**3  # smaller models load in a moment and need no bar


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's parts stand on this machine.

    Args:
        base: folder with config.json and weights.
        adapter: folder with an adapter on top of it (the last of several), or None.
        base_name: what an adapter trained on the base names it: the hub id, or the folder's absolute path.
        revision: the base's revision on its hub.
        fingerprint: of everything that is loaded.
        adapters: all of them, in the order they are put on; of a single one it may be left out.
        combine: how several become one.
    """

    base: Path
    adapter: Path | None
    base_name: str
    revision: str | None
    fingerprint: str
    adapters: tuple[AdapterPart, ...] = ()
    combine: CombineConfig = field(default_factory=CombineConfig)

    def __post_init__(self) -> None:
        if self.adapter is None or not self.adapters or self.adapters[-1].folder != self.adapter:
            alone = () if self.adapter is None else (AdapterPart(self.adapter),)
            object.__setattr__(self, "adapters", alone)

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer: the adapter's own if it brought one."""
        own = self.adapter
        return own if own is not None and (own / "tokenizer_config.json").exists() else self.base

    def only(self, adapters: tuple[AdapterPart, ...]) -> ModelSource:
        """The base with these adapters, as they are stacked."""
        return replace(self, adapter=adapters[-1].folder if adapters else None, adapters=adapters)


def find(model: ModelConfig) -> ModelSource:
    """Resolve a model's name, an adapter's base, and the adapters that are put on it.

    Raises:
        HubError, ModelError: not there, not reachable, not loadable, or adapters that do not fit the base or each other;
            says which.
    """
    folder = resolve(model)
    adapter = None
    named = model
    if is_adapter(folder):
        adapter = folder
        named = _base_of(adapter, model)
        try:
            folder = resolve(named)
        except UserError as error:
            # a base that only a cache_dir of the run's, or its working directory, could find
            remembered = base_of_run(adapter)
            if remembered is None:
                raise ModelError(
                    f"the adapter {adapter} names the base {named.name!r}, which could not be loaded: {error}",
                    f"Fetch the base, or mend base_model_name_or_path in {adapter / 'adapter_config.json'}.",
                ) from error
            folder = remembered
    hub, name = locate(named.name)
    at_hub = hub == "huggingface"
    base_name = name if at_hub else str(folder.absolute())
    listed = [
        resolve(model.model_copy(update={"name": entry.path, "revision": entry.revision})) for entry in model.adapters
    ]
    parts = adapter_parts(adapter, listed, [entry.weight for entry in model.adapters], model.combine)
    marks = [fingerprint(folder)]
    for part in parts:
        if part.folder != adapter:
            check_base(part, folder, base_name, marks)
        marks.append(f"{marks[-1]}+{fingerprint(part.folder)}")
    _check_use(model, parts)
    whole = mark(marks[0], parts, model.combine)
    last = parts[-1].folder if parts else None
    return ModelSource(folder, last, base_name, named.revision if at_hub else None, whole, parts, model.combine)


def _check_use(model: ModelConfig, parts: tuple[AdapterPart, ...]) -> None:
    """Raise ModelError where settings speak of adapters that are not there, or of one that is several."""
    if not parts and (model.continue_adapter or model.combine.name != STACK):
        key = "continue_adapter" if model.continue_adapter else "combine"
        raise ModelError(
            f"model.{key} is set, but {model.name} is no adapter and model.adapters is empty.",
            f"Name an adapter in model.adapters, or leave model.{key} out.",
        )
    if model.continue_adapter and (model.combine.name != STACK or parts[-1].weight != 1):
        raise ModelError(
            "model.continue_adapter trains an adapter as it is, and this one is combined or weighted.",
            "Write it first: `luthier export MODEL OUT --format adapter --adapter ... --combine ...`, then continue OUT.",
        )


def base_of_run(folder: Path) -> Path | None:
    """The base model's folder, as the run says that `folder` (its final/ or a checkpoint) is part of; None elsewhere."""
    for place in (folder, *folder.resolve().parents[:2]):
        if (place / "run.json").is_file():
            named = read_json(place / "run.json").get("base_folder")
            return Path(named) if named and Path(named).is_dir() else None
    return None


def _base_of(adapter: Path, model: ModelConfig) -> ModelConfig:
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    base = settings.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"the adapter {adapter} does not name its base model.",
            "Set base_model_name_or_path in its adapter_config.json.",
        )
    revision = None if Path(base).exists() else settings.get("revision")
    return model.model_copy(update={"name": base, "revision": revision})


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
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The causal language model in a folder, on the CPU, in evaluation mode; or its backbone with a head.

    Args:
        head: made anew where the folder's model has none. seed: torch's, before that.
    """
    import torch

    kind = _kind(head)
    more = {}
    if head is not None:
        more["config"] = with_head(config_at(folder, trust_remote_code=trust_remote_code), head)
        torch.manual_seed(seed)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with contextlib.ExitStack() as quiet:
        if size < QUIET_BELOW_BYTES:
            quiet.enter_context(quiet_bars())
        if head is not None:
            quiet.enter_context(quiet_loading())
        try:
            model: PreTrainedModel
            model, report = kind.from_pretrained(
                folder,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **more,
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise ModelError(
                f"the model in {folder} does not load: {_first_line(error)}",
                "`luthier models verify` checks its files." + _remote_code_hint(error),
            ) from error
    # transformers fills what is missing with random numbers and goes on
    absent = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if head is not None and saved_head(folder) is None:
        new = tuple(f"{name}." for name in head_modules(model))
        absent = [name for name in absent if not name.startswith(new)]
    if absent:
        raise ModelError(
            f"the weights in {folder} lack {len(absent)} of {type(model).__name__}'s tensors, or have them in another "
            f"shape: {', '.join(absent[:6])}{' ...' if len(absent) > 6 else ''}.",
            "Fetch the model again; a model made for another task (classification, embedding) has no head to train.",
        )
    return model


def skeleton(
    config: PreTrainedConfig, *, head: SequenceHead | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model without weights (on torch's meta device): for names and counts before anything is read."""
    import torch

    if head is not None:
        config = with_head(config, head)
    with torch.device("meta"):
        model: PreTrainedModel = _kind(head).from_config(config, trust_remote_code=trust_remote_code)
    model.tie_weights()
    return model


def _kind(head: SequenceHead | None) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if head is None else AutoModelForSequenceClassification


def grow_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give a model rows for tokens it never saw, as many as its tokenizer has; True if any were added.

    New rows start as the mean of the old ones: a neutral token, the same on every run.
    """
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= rows:
        return False
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for weight in both_embeddings(model):
            weight[rows:] = weight[:rows].mean(dim=0)
    return True


def both_embeddings(model: PreTrainedModel) -> list[torch.Tensor]:
    """The weights of embedding and head, once if they are tied; a model for classification has no head over words."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return list({id(module.weight): module.weight for module in modules if module is not None}.values())


def load(source: ModelSource, dtype: torch.dtype, *, trust_remote_code: bool = False) -> Any:
    """Base and adapters together, for generation and export: a transformers model, or a peft model around one.

    Raises:
        ModelError: weights that do not load, or an adapter made for another base.
    """
    head = saved_head(source.adapter, source.base)
    if source.adapter is None:
        return weights_at(source.base, dtype, head=head, trust_remote_code=trust_remote_code)
    config = config_at(source.base, trust_remote_code=trust_remote_code)
    bare = skeleton(config, head=head, trust_remote_code=trust_remote_code)
    words = tokenizer_at(source.tokenizer, trust_remote_code=trust_remote_code)
    grow_embeddings(bare, words)
    check_shapes(bare, source.adapters)
    model = weights_at(source.base, dtype, head=head, trust_remote_code=trust_remote_code)
    grow_embeddings(model, words)
    return put_on(model, source.adapters, source.combine)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _remote_code_hint(error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return " It brings its own Python code: read that, then add --trust-remote-code to the command."
    return ""
