"""Adapters on a base: whether they were made for it, found out before weights are read; several on top of each other, or
several made into one."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.adapters_section import PRUNED, STACK, CombineConfig
from luthier.config.plugins import METHODS
from luthier.foundation.errors import ModelError
from luthier.foundation.files import read_json
from luthier.model.embeddings import set_rows
from luthier.model.heads import head_shapes, load_head
from luthier.model.inspection import (
    ADAPTER_CONFIG,
    MENDING,
    OWN_METHOD,
    fingerprint,
    header_of,
    is_adapter,
    weight_files,
)
from luthier.model.merging import check_mergeable, merge
from luthier.model.plain_peft import without_bitsandbytes
from luthier.model.quantization import has_quantized
from luthier.model.quiet import quiet_peft

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class AdapterPart:
    """An adapter that is put on a model, and how many times its update counts."""

    folder: Path
    weight: float = 1.0

    @property
    def settings(self) -> dict[str, Any]:
        """Its adapter_config.json."""
        found: dict[str, Any] = read_json(self.folder / ADAPTER_CONFIG)
        return found

    @property
    def method(self) -> str:
        """The name of the method that made it, as a config has it."""
        settings = self.settings
        kind = str(settings.get("peft_type", "")).lower()
        return str(settings.get(OWN_METHOD) or {"ln_tuning": "norm_tuning"}.get(kind, kind))


def check_parts(parts: Sequence[AdapterPart], combine: CombineConfig) -> None:
    """Refuse what can't be put together, from the adapters' configs alone.

    Raises:
        ModelError: one that can't be merged lies under another, a weight or a combination that needs LoRA, or other ranks.
    """
    if combine.name == STACK:
        for part in parts[:-1]:
            check_mergeable(part.folder)
    for part in parts:
        if (part.folder / MENDING).is_file() and (len(parts) > 1 or part.weight != 1):
            raise ModelError(
                f"{part.folder} was trained with init: loftq and mends its base's quantization: it can't be put together with "
                "others, or weighted.",
                f"Merge it first: `luthier export {part.folder} OUT`, and put the others on OUT.",
            )
        if combine.name == STACK and part.weight == 1:
            continue
        need = f"combine: {combine.name}" if combine.name != STACK else f"a weight of {part.weight:g}"
        settings = part.settings
        if part.method != "lora":
            raise ModelError(
                f"{need} needs LoRA, and {part.folder} is an adapter of {part.method}.",
                "Stack it instead (combine: stack, weight 1).",
            )
        others: dict[str, Any] = {
            "use_dora": False,
            "bias": "none",
            "modules_to_save": None,
            "trainable_token_indices": None,
        }
        if combine.name != STACK:
            others["target_parameters"] = (
                None  # a mixture's stacked experts, whose updates peft weighs but can't combine
            )
        for key, plain in others.items():
            if (settings.get(key) or plain) != plain:
                raise ModelError(
                    f"{need} is not possible with {part.folder}: its {key} is {settings[key]!r}, and that part of it is no "
                    "low-rank update that could be scaled or added.",
                    "Stack it instead (combine: stack, weight 1).",
                )
    if parts and combine.name != STACK:
        _check_ranks(parts, combine)


def _check_ranks(parts: Sequence[AdapterPart], combine: CombineConfig) -> None:
    """Refuse ranks with which peft's add_weighted_adapter does not do what its name says.

    Raises:
        ModelError: one adapter alone, which it never shrinks or prunes; ranks that differ among layers where factors are added
            or taken over as they are; a rank that a layer has no room for.
    """
    name = combine.name
    if len(parts) == 1 and name not in ("cat", "linear"):
        raise ModelError(
            f"combine: {name} makes one adapter of several, and {parts[0].folder} is the only one: it would stay as it is.",
            "Name another in model.adapters, or leave combine out.",
        )
    ranks = {part: {part.settings.get("r", 8), *(part.settings.get("rank_pattern") or {}).values()} for part in parts}
    for part, own in ranks.items():
        if len(own) > 1 and (len(parts) == 1 or not name.endswith(("cat", "svd"))):
            raise ModelError(
                f"{part.folder} has other ranks in other layers, {min(own)} to {max(own)} (as init: eva gives them), and "
                + (f"combine: {name} adds factors of one rank." if len(parts) > 1 else "alone it can't be combined."),
                "Stack it instead (combine: stack, with any weight), or combine several by cat or svd.",
            )
    if not name.endswith("svd"):
        return
    rank, width = combine.rank or max(map(max, ranks.values())), min(map(_narrowest, parts))
    if rank > width:
        raise ModelError(
            f"combine: {name} would make an update of rank {rank}, and the narrowest layer of the adapters is {width} wide.",
            f"Set combine.rank to {width} or less, or use combine: cat.",
        )


def _narrowest(part: AdapterPart) -> int:
    """The smallest input or output of a layer that a LoRA is on: the side of a factor that is not its rank."""
    (file,) = weight_files(part.folder)
    shapes: dict[str, list[int]] = {name: entry["shape"] for name, entry in header_of(file).items() if ".lora_" in name}
    return min(shape[0] if "B" in name.rpartition(".lora_")[2] else shape[1] for name, shape in shapes.items())


def check_base(part: AdapterPart, base: Path, base_name: str, made_on: Sequence[str]) -> None:
    """Refuse an adapter that was made for another base, by fingerprint or name.

    Args:
        base_name: a hub id, or the folder's absolute path.
        made_on: fingerprints of what it may have been trained on: the base, or the base with adapters before it.

    Raises:
        ModelError: with both names.
    """
    named = str(part.settings.get("base_model_name_or_path") or "")
    manifest = part.folder / "manifest.json"
    noted = read_json(manifest).get("fingerprints", {}).get("model") if manifest.is_file() else None
    if noted is None and named and Path(named).is_dir():
        noted = fingerprint(Path(named))
    if noted is not None and noted.partition(":")[0] == made_on[0].partition(":")[0]:
        fits = noted in made_on
    else:  # nothing to compare: two hub ids that differ are two models, a path may have moved
        ids = [name for name in (named, base_name) if name and not Path(name).is_absolute()]
        fits = len(ids) < 2 or ids[0] == ids[1]
    if not fits:
        raise ModelError(
            f"the adapter {part.folder} was made for another base: {named or 'one that it does not name'}, not {base_name}.",
            f"Name its own base, or, if they are the same model, mend base_model_name_or_path in "
            f"{part.folder / ADAPTER_CONFIG} and remove the manifest.json beside it.",
        )


def check_shapes(model: PreTrainedModel, parts: Sequence[AdapterPart]) -> None:
    """Compare the names and shapes of adapters' tensors with those that a model (without weights) would have.

    Raises:
        ModelError: an adapter for another model, with the first tensor that does not fit.
    """
    for part in parts:
        (file,) = weight_files(part.folder)
        saved = {name: tuple(entry["shape"]) for name, entry in header_of(file).items()}
        with without_bitsandbytes():
            expected = _expected(model, part)
        if expected is None:
            continue
        rows = held_rows(model, part) or 0
        expected = {**{name: (rows, width) for name, width in _vocabulary(model).items() if name in saved}, **expected}
        wrong = sorted(name for name in {*saved, *expected} if saved.get(name) != expected.get(name))
        if wrong:
            name = wrong[0]
            own, theirs = (str(list(found[name])) if name in found else "not there" for found in (saved, expected))
            raise ModelError(
                f"the adapter {part.folder} is made for another model: its {name} is {own}, for this "
                f"{type(model).__name__} it would be {theirs} ({len(wrong)} of its {len(saved)} tensors do not fit).",
                f"Its base is {part.settings.get('base_model_name_or_path') or 'not named in it'}.",
            )


def _vocabulary(model: PreTrainedModel) -> dict[str, int]:
    """Names that the base's embedding and head have in an adapter, with their width: where other tools train beside them,
    or gave them more rows, they write the whole of them, and peft takes them from there."""
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    return {
        f"base_model.model.{path}{inner}.weight": module.weight.shape[1]
        for path, module in model.named_modules()
        if any(module is end for end in ends)
        for inner in ("", ".base_layer", ".original_module", ".modules_to_save")
    }


def held_rows(model: PreTrainedModel, part: AdapterPart) -> int | None:
    """How many rows the embedding has that an adapter holds; None where it holds none."""
    (file,) = weight_files(part.folder)
    header = header_of(file)
    return max((header[name]["shape"][0] for name in _vocabulary(model) if name in header), default=None)


def _fit_rows(model: PreTrainedModel, part: AdapterPart) -> None:
    """Give a model as many rows as the embedding has that an adapter holds: often a multiple of 64."""
    rows = held_rows(model, part)
    if rows not in (None, model.get_input_embeddings().weight.shape[0]):
        set_rows(model, rows)


def _expected(skeleton: PreTrainedModel, part: AdapterPart) -> Mapping[str, tuple[int, ...]] | None:
    """Names and shapes that an adapter of these settings has on a model; None where its own config does not say."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    model = copy.deepcopy(skeleton)
    _fit_rows(model, part)
    settings = part.settings
    if OWN_METHOD in settings:
        shapes: dict[str, tuple[int, ...]] = _own(part).shapes(model, part.folder)
        return shapes
    if settings.get("peft_type") == "ADALORA" and settings.get("rank_pattern"):
        return None  # peft writes those cut to their ranks
    with quiet_peft():
        config: Any = PeftConfig.from_pretrained(part.folder)
        config.inference_mode, config.base_model_name_or_path = False, None
        if config.is_prompt_learning:
            for key in ("token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"):
                setattr(config, key, None)  # the model's own, not the ones in the file
            for key, plain in (("prefix_projection", False), ("prompt_tuning_init", "RANDOM")):
                if hasattr(config, key):
                    setattr(config, key, plain)
        elif hasattr(config, "init_lora_weights"):
            config.init_lora_weights = True
        try:
            tuned: Any = get_peft_model(model, config)
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(
                f"the adapter {part.folder} is made for another model: {str(error).splitlines()[0]}",
                f"Its base is {settings.get('base_model_name_or_path') or 'not named in it'}.",
            ) from error
        if config.is_prompt_learning:
            prompt = {"prompt_embeddings": tuple(tuned.prompt_encoder["default"].embedding.weight.shape)}
            return prompt | (head_shapes(skeleton) if config.task_type == "SEQ_CLS" else {})
        state = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    return {name: tuple(value.shape) for name, value in state.items()}


def put_on(model: PreTrainedModel, parts: Sequence[AdapterPart], combine: CombineConfig) -> Any:
    """A base with its adapters: the last one on top where they are stacked, the others merged."""
    with without_bitsandbytes(has_quantized(model)):
        if combine.name != STACK:
            return _combined(model, parts, combine)
        *under, top = parts
        for part in under:
            model = merge(_one(model, part))
        return _one(model, top)


def _one(model: PreTrainedModel, part: AdapterPart) -> Any:
    if OWN_METHOD in part.settings:
        attached = _own(part).attach(model, part.folder)
        load_head(attached, part.folder)
        return attached
    from peft import PeftModel, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
    from safetensors.torch import load_file

    from luthier.model.mixed_precision import norms_in_float32

    _fit_rows(model, part)
    with quiet_peft():
        tuned: Any = PeftModel.from_pretrained(model, part.folder)
        if part.method == "norm_tuning":
            norms_in_float32(tuned)
            # once more: what was read first was rounded to the base's precision
            set_peft_model_state_dict(tuned, load_file(weight_files(part.folder)[0]))
    for module in tuned.modules() if part.weight != 1 else ():
        if isinstance(module, LoraLayer):  # whose scale_layer passes over embeddings
            for name in set(module.active_adapters) & set(module.scaling):
                module.scaling[name] *= part.weight
    return tuned


def _own(part: AdapterPart) -> Any:
    """The plug-in of ours that reads an adapter. Raises ModelError for one this luthier does not know."""
    name = part.settings[OWN_METHOD]
    if name not in METHODS.names():  # never an outside module that a file names
        raise ModelError(
            f"the adapter {part.folder} is of the method {name!r}, which this luthier does not know.",
            "Update luthier, or load it with the tool that wrote it.",
        )
    return METHODS.load(name)


def _combined(model: PreTrainedModel, parts: Sequence[AdapterPart], combine: CombineConfig) -> Any:
    """One LoRA made of several, by peft's add_weighted_adapter."""
    import torch
    from peft import PeftModel

    rows = {part.folder: held_rows(model, part) for part in parts}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{folder}: {count or 'none'}" for folder, count in rows.items())
        raise ModelError(
            f"combine: {combine.name} needs adapters of one vocabulary, and the embeddings that these hold have other numbers of rows: {counts}.",
            "Export one of them as a model of its own (`luthier export`), and put the others on that.",
        )
    _fit_rows(model, parts[0])
    names = [f"part{index}" for index in range(len(parts))]
    settings: dict[str, Any] = {
        "svd_rank": combine.rank,
        "majority_sign_method": combine.majority_sign_method or "total",
    }
    if combine.name.startswith(PRUNED):
        settings["density"] = combine.density or 0.5
    with quiet_peft():
        tuned: Any = PeftModel.from_pretrained(model, parts[0].folder, adapter_name=names[0])
        for name, part in zip(names[1:], parts[1:], strict=True):
            tuned.load_adapter(part.folder, adapter_name=name)
        # the result is made after the first one's settings, at a scale of one: peft would take its root for rslora
        first = tuned.peft_config[names[0]]
        tuned.peft_config[names[0]] = replace(first, use_rslora=False, init_lora_weights=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(combine.seed or 0)
            try:
                tuned.add_weighted_adapter(names, [part.weight for part in parts], "default", combine.name, **settings)
            except ValueError as error:
                raise ModelError(
                    f"{', '.join(str(part.folder) for part in parts)} can't be combined by {combine.name}: {error}",
                    "Use combine: cat or svd, which take any ranks, or stack.",
                ) from error
        tuned.set_adapter("default")
        for name in names:
            tuned.delete_adapter(name)
    tuned.requires_grad_(False)
    return tuned.eval()


def adapter_parts(
    named: Path | None, folders: Sequence[Path], weights: Sequence[float], combine: CombineConfig
) -> tuple[AdapterPart, ...]:
    """The adapters of a model: the one that its name is, then those of its list.

    Raises:
        ModelError: one of the list is none, or they can't be put together.
    """
    parts = [AdapterPart(named)] if named is not None else []
    for folder, weight in zip(folders, weights, strict=True):
        if not is_adapter(folder):
            raise ModelError(f"model.adapters: {folder} is a whole model, no adapter.", "Name it as the model itself.")
        parts.append(AdapterPart(folder, weight))
    check_parts(parts, combine)
    return tuple(parts)


def mark(base: str, parts: Sequence[AdapterPart], combine: CombineConfig) -> str:
    """Fingerprint of a base with adapters; `base` is the base's."""
    marks = [base]
    for part in parts:
        marks.append(fingerprint(part.folder) + (f"*{part.weight:g}" if part.weight != 1 else ""))
    how = "" if combine.name == STACK else "+" + json.dumps(combine.model_dump(exclude_none=True), sort_keys=True)
    return "+".join(marks) + how
