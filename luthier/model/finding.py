"""From a config's model to where its parts stand on this machine: base, adapters, and how the base is to be loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.config.adapters_section import STACK, CombineConfig
from luthier.config.plugins import HUBS
from luthier.config.schema import ModelConfig
from luthier.foundation.errors import ModelError, UserError
from luthier.foundation.files import read_json
from luthier.model.adapters import AdapterPart, adapter_parts, check_base, mark
from luthier.model.base_settings import PLAIN, BaseSettings, asked_for, remembered_by_all
from luthier.model.inspection import MENDING, content_hash, fingerprint, is_adapter
from luthier.model.quantization import saved_in, saved_name
from luthier.model.resolving import HUB_ID, PREFIX, asked_hub, locate, resolve


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
        settings: how the base is changed while it loads: as the config asks, else as the adapter remembers.
        saved_quantization: what the base's config.json says of weights that are quantized already; None: they are plain.
        from_scratch: only the base's config is used; its weights, if it has any, are drawn anew.
        own_tokenizer: folder of the tokenizer that such a model gets; None: the base's.
    """

    base: Path
    adapter: Path | None
    base_name: str
    revision: str | None
    fingerprint: str
    adapters: tuple[AdapterPart, ...] = ()
    combine: CombineConfig = field(default_factory=CombineConfig)
    settings: BaseSettings = PLAIN
    saved_quantization: Mapping[str, Any] | None = None
    from_scratch: bool = False
    own_tokenizer: Path | None = None

    def __post_init__(self) -> None:
        if self.adapter is None or not self.adapters or self.adapters[-1].folder != self.adapter:
            alone = () if self.adapter is None else (AdapterPart(self.adapter),)
            object.__setattr__(self, "adapters", alone)

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer: the one named for a new model, or the adapter's own if it brought one."""
        own = self.own_tokenizer or self.adapter
        return own if own is not None and (own / "tokenizer_config.json").exists() else self.base

    def content_hash(self) -> str:
        """The fingerprint, and every byte of the weights that are loaded: see `inspection.content_hash`."""
        if self.from_scratch:  # its weights are drawn anew
            return self.fingerprint
        folders = [self.base, *(part.folder for part in self.adapters)]
        return "+".join([self.fingerprint, *map(content_hash, folders)])

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
    if model.from_scratch:
        return _plan_of(model, folder)
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
    at_hub = hub == "huggingface" and not name.endswith(".gguf")  # of a file, plain peft needs the converted folder
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
    settings = asked_for(model).over(remembered_by_all([part.folder for part in parts]))
    for part in parts:
        trained = remembered_by_all([part.folder]).quantization
        if (part.folder / MENDING).is_file() and settings.quantization != trained:
            raise ModelError(
                f"model.quantization is {settings.quantization}, but {part.folder} mends that of {trained}.",
                "Leave model.quantization out: the adapter remembers it.",
            )
    saved = saved_in(folder)
    if saved is not None and settings.quantization is not None and not parts:
        raise ModelError(
            f"model.quantization is {settings.quantization}, but the weights in {folder} are quantized already "
            f"({saved_name(saved)}).",
            "Leave model.quantization out, or name the model with plain weights.",
        )
    revision = named.revision if at_hub else None
    return ModelSource(folder, last, base_name, revision, whole, parts, model.combine, settings, saved)


def _plan_of(model: ModelConfig, folder: Path) -> ModelSource:
    """A model that is made anew: a config and a tokenizer.

    Raises:
        ModelError: an adapter has no config of a model; no tokenizer where one is named.
    """
    if is_adapter(folder):
        raise ModelError(
            f"model.from_scratch makes weights by a model's config, and {folder} is an adapter.", "Name a whole model."
        )
    tokenizer = Path(model.tokenizer) if model.tokenizer is not None else None
    if tokenizer is not None and not (tokenizer / "tokenizer_config.json").is_file():
        raise ModelError(
            f"model.tokenizer is {str(tokenizer)!r}, where no tokenizer_config.json is.",
            "Name a folder that `luthier tokenizer train` wrote, or a model's.",
        )
    mark = f"scratch+{fingerprint(folder)}" + (f"+{fingerprint(tokenizer)}" if tokenizer is not None else "")
    own = tokenizer.absolute() if tokenizer is not None else None
    return ModelSource(folder, None, "", None, mark, settings=asked_for(model), from_scratch=True, own_tokenizer=own)


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


def trained_on(model: ModelConfig, source: ModelSource) -> BaseSettings:
    """How the base of a run is changed while it loads: as asked, and as it was for an adapter that is continued. Adapters
    to start from are merged first, into a base whose own config.json says what was changed."""
    if source.adapters[:-1] if model.continue_adapter else source.adapters:
        return replace(PLAIN, quantization=model.quantization)
    return source.settings


def is_base_quantized(model: ModelConfig, source: ModelSource) -> bool:
    """Whether a run trains beside quantized weights. Adapters to start from are merged into plain ones."""
    merged = bool(source.adapters[:-1] if model.continue_adapter else source.adapters)
    return trained_on(model, source).quantization is not None or (source.saved_quantization is not None and not merged)


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
    if Path(base).exists():
        return model.model_copy(update={"name": base, "revision": None})
    if (prefixed := PREFIX.fullmatch(base)) and prefixed["hub"] not in HUBS.names():
        # never an outside module that a file names: it would run as it is imported
        raise ModelError(
            f"the adapter {adapter} names the base {base!r}, and {prefixed['hub']!r} is no model source of luthier's "
            f"({', '.join(HUBS.names())}).",
            "Fetch the base, and set base_model_name_or_path in its adapter_config.json to the folder.",
        )
    owner, slash, _ = base.partition("/")
    if slash and owner and HUB_ID.fullmatch(base) and Path(owner).is_dir():
        # what a person types would be a path to nothing; what peft wrote is a hub's id
        base = f"{asked_hub()}:{base}"
    return model.model_copy(update={"name": base, "revision": settings.get("revision")})
