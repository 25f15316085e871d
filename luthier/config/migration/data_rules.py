"""The rules for data: LLaMA-Factory names entries of a registry, luthier says of each entry what is taken from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from luthier.config.migration.answers import Answer, Case, changed, mapped, names, refused

REGISTRY = "dataset_info.json"


def entries(case: Case, key: str) -> list[str | dict[str, Any]]:
    """`dataset` or `eval_dataset` as entries of luthier's data section."""
    folder = str(case.value("dataset_dir"))
    online = folder == "ONLINE"
    prompts: list[str] = str(case.value("default_system") or "").split("|") if case.value("default_system") else []
    weights = names(case.value("interleave_probs") or ())
    found: list[str | dict[str, Any]] = []
    listed = names(case.value(key) or ())
    for position, name in enumerate(listed):
        entry: dict[str, Any] = {"path": name if online else f"{Path(folder) / REGISTRY}#{name}"}
        if case.given.get("split") not in (None, "train"):
            entry["split"] = case.value("split")
        if case.value("max_samples") is not None:
            entry |= {"max_samples": case.value("max_samples"), "head": True}
        if prompts:
            several = case.old and len(prompts) == len(listed)  # one for each data set; else the only one for all
            entry["system"] = prompts[position] if several else case.value("default_system")
        if key == "dataset" and len(weights) == len(listed) > 1 and case.value("mix_strategy") != "concat":
            entry["weight"] = float(weights[position])
        found.append(entry["path"] if set(entry) == {"path"} else entry)
    return found


def dataset(case: Case, key: str, value: Any) -> Answer:
    """The training rows."""
    folder = str(case.value("dataset_dir"))
    if folder.startswith("REMOTE:"):
        return refused(f"dataset_dir {folder} is a registry on a hub: download it, and name its folder")
    if not value:
        return mapped()
    missing = folder != "ONLINE" and not (Path(folder) / REGISTRY).is_file()
    note = f"{Path(folder) / REGISTRY} is not here: run luthier where it is, or write its path" if missing else ""
    if case.work != "train":
        return _rows_of_a_command(case, key)
    return mapped({"data.train": entries(case, key)}, note)


def _rows_of_a_command(case: Case, key: str) -> Answer:
    """A command works on the rows to evaluate on, else on those to train on."""
    if case.work not in ("predict", "evaluate") or (case.work == "evaluate" and case.value("task")):
        return mapped(note=f"nothing that `luthier {case.work}` needs")
    if key == "dataset" and case.value("eval_dataset"):
        return mapped(note="the rows that were trained on")
    return mapped(note="the option --data")


def with_dataset(case: Case, key: str, value: Any) -> Answer:
    """What is said of every entry."""
    training = case.work == "train"
    given = case.value("dataset") or (not training and key != "interleave_probs" and case.value("eval_dataset"))
    if not given or value in (None, ABSENT_SPLIT.get(key)):
        return mapped()
    every = "every entry of data.train" if training else "every --data"
    shown = {
        "dataset_dir": f"the path of {every}",
        "split": f"split: {value} in {every}",
        "max_samples": f"max_samples: {value}, head: true in {every}, the first rows as there",
        "default_system": f"system in {every}",
        "interleave_probs": f"weight in {every}",
    }[key]
    if key == "interleave_probs":
        if case.value("mix_strategy") == "concat":
            return refused("it is only for interleaved mixing", wrong=True)
        if len(names(value)) != len(names(case.value("dataset"))):
            return refused("it needs as many numbers as there are data sets", wrong=True)
    if key == "default_system" and "|" in str(value) and case.old:
        shown = "system of the entries of data.train, one each"
    return mapped(note=shown)


ABSENT_SPLIT = {"split": "train"}


def mix_strategy(case: Case, key: str, value: Any) -> Answer:
    """How several data sets are mixed."""
    if value == "concat":
        return mapped()
    if len(names(case.value("dataset") or ())) < 2:
        return mapped(note="there is one data set, and nothing to mix")
    return mapped({"data.mix": value})


def _held_out(case: Case, settings: Any) -> Answer:
    """Rows to evaluate on: in luthier, rows that are only scored after training are data.test."""
    if case.value("eval_strategy") != "no":
        return mapped({"data.validation": settings})
    if case.value("do_eval"):
        return mapped({"data.test": settings}, "they are scored once, after training")
    return changed(
        {"data.test": settings}, "LLaMA-Factory holds them out and never reads them; here they are scored once"
    )


def val_size(case: Case, key: str, value: Any) -> Answer:
    """A share or a count of the training rows, to evaluate on."""
    if not value or value <= 1e-6:
        return mapped()
    if case.work != "train":
        return refused("rows to predict come from an entry of their own: name them")
    return _held_out(case, int(value) if value >= 1 else value)


def eval_dataset(case: Case, key: str, value: Any) -> Answer:
    """Rows of their own to evaluate on."""
    if not value:
        return mapped()
    if case.work != "train":
        return _rows_of_a_command(case, key)
    return _held_out(case, entries(case, key))


def cutoff_len(case: Case, key: str, value: Any) -> Answer:
    """The longest row; the version with a limit for each side has none for both."""
    if key not in case.given:
        value = cutoff(case)
    if case.value("stage") == "pt":
        return mapped({"data.cutoff_length": value}, "the length of a block")
    note = "longer rows lose whole turns at the end; LLaMA-Factory cuts question and answer in proportion"
    if case.old and key not in case.given:
        note = "max_source_length + max_target_length"
        return mapped({"data.cutoff_length": value}, note)
    return changed({"data.cutoff_length": value}, note)


def cutoff(case: Case) -> int:
    """The longest row, given or not."""
    if "cutoff_len" in case.given:
        return int(case.given["cutoff_len"])
    if case.old:
        source = int(case.value("max_source_length"))
        return source if case.value("stage") == "pt" else source + int(case.value("max_target_length"))
    return 1024 if case.before_0_9 else int(case.value("cutoff_len"))


def side_length(case: Case, key: str, value: Any) -> Answer:
    """The longest question and the longest answer."""
    if case.value("stage") == "pt":
        return mapped(note="the length of a block is data.cutoff_length" if key == "max_source_length" else "")
    if "cutoff_len" in case.given:
        return refused("cutoff_len says it", wrong=True)
    return mapped({f"data.{key}": value})


WORKERS = {
    "preprocessing_num_workers": "data.preprocessing_num_workers",
    "dataloader_num_workers": "training.dataloader_num_workers",
}


def workers(case: Case, key: str, value: Any) -> Answer:
    """Processes beside the one that trains, of which a stream has none."""
    if value is None:
        return mapped()
    if case.value("streaming") and value:
        return changed(None, "a stream is read, tokenized and packed in the training process")
    if case.value("stage") == "pt" and key == "preprocessing_num_workers":
        return changed(None, "documents are joined into blocks, which one process does")
    return mapped({WORKERS[key]: value})


def packing(case: Case, key: str, value: Any) -> Answer:
    """Several rows in one, which luthier does with every batch, without their seeing each other."""
    pretraining = case.value("stage") == "pt"
    if pretraining and value is False and key == "packing":
        return changed({"stage.attend_across_documents": False}, "documents share blocks, and don't see each other")
    if pretraining or not value:
        return mapped(note="documents share blocks" if value else "nothing is padded")
    if key == "neat_packing" and case.value("packing"):
        return mapped(note="packed rows never see each other")
    note = (
        "rows are packed by the batch, and a batch counts rows: where LLaMA-Factory fills per_device_train_batch_size x "
        "cutoff_len tokens with many, raise training.per_device_train_batch_size"
    )
    unseen = "" if case.value("neat_packing") else "; packed rows never see each other"
    return changed(None, note + unseen)


Rule = Callable[[Case, str, Any], Answer]
DATA_RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (dataset, with_dataset, mix_strategy, val_size, eval_dataset, cutoff_len, side_length, workers, packing)
}
