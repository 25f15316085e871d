"""The table of stages: complete, one truth with the stages' own code, and rows can be shown for each of them."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from luthier.commands.data import show
from luthier.config import loading
from luthier.config.plugins import ENCODERS, STAGES
from luthier.config.stage_encoders import STAGE_ENCODERS, encoder_of, untrained_stages
from luthier.foundation.errors import ConfigError, DataError

FORMATS = Path(__file__).parents[2] / "examples" / "formats"
# an example file for each stage, and what is shown of its first row
SHOWN = {
    "sft": ("openai", "assistant\n⟦"),
    "pretrain": ("text", "A⟦ luthier builds"),
    "reward": ("alpaca_pair", "-- chosen"),
    "dpo": ("openai_pair", "assistant\n⟦A finger or felt.<|im_end|>⟧\n-- rejected\n"),
    "orpo": ("sharegpt_pair", "-- rejected"),
    "simpo": ("openai_pair", "-- rejected"),
    "kto": ("kto", "15 targets, label 1"),
    "ppo": ("openai", "21 tokens\n<|im_start|>user\nWhat is a fret?<|im_end|>\n<|im_start|>assistant\n\n"),
    "grpo": ("alpaca", "<|im_start|>user\nName a wood for guitar tops.<|im_end|>\n<|im_start|>assistant\n\n"),
    "classification": ("classification", "23 tokens, label 1 (praise)\nThe tone is warm and clear."),
    "regression": ("numbers", ", label 4.5\nWarm."),
}


def test_every_stage_is_in_the_table() -> None:
    assert set(STAGES.names()) <= set(STAGE_ENCODERS) == set(SHOWN)
    heads = [other for row in STAGE_ENCODERS.values() for other in row.by_head.values()]
    assert {row.encoder for row in (*STAGE_ENCODERS.values(), *heads)} <= set(ENCODERS.names())


@pytest.mark.parametrize("name", STAGES.names())
def test_stages_take_their_encoder_from_it(name: str) -> None:
    module, row = STAGES.load(name), STAGE_ENCODERS[name]
    options = module.Options()
    stage = module.build(options)
    settings = {key: value for key in row.settings if (value := getattr(options, key)) is not None}
    assert (stage.encoder, stage.encoder_options) == (row.encoder, {**settings, **row.constants})
    assert set(row.settings) <= set(ENCODERS.load(row.encoder).Options.model_fields)
    assert encoder_of(options).encoder == row.encoder


@pytest.mark.parametrize("stage", SHOWN)
def test_rows_of_every_stage_can_be_shown(tiny_llama: Path, write, stage: str) -> None:
    example, expected = SHOWN[stage]
    out = StringIO()
    numbers = write("numbers.json", [{"text": "Warm.", "label": 4.5}])
    data = {"train": str(numbers if example == "numbers" else FORMATS / f"{example}.jsonl")}
    config = {"model": str(tiny_llama), "data": data, "stage": stage}
    shown = show(config, console=Console(file=out, width=200), rows=1)
    assert expected in out.getvalue() and len(shown.examples) == 1 and "NOTHING here" not in out.getvalue()


@pytest.mark.parametrize("stage", sorted(untrained_stages()))
def test_stages_without_training_code_are_refused_by_training(stage: str) -> None:
    config = {"model": "m", "data": {"train": "a.jsonl"}, "stage": stage}
    with pytest.raises(ConfigError, match=rf"stage: {stage} can't be trained yet, only .*sft can; `luthier data show`"):
        loading.load(config)
    assert loading.load(config, for_training=False).stage.name == stage
    with pytest.raises(ConfigError, match=r"stage\.beta: unknown key"):
        loading.load(config | {"stage": {"name": stage, "beta": 0.1}}, for_training=False)
    with pytest.raises(ConfigError, match="there is no stage named 'dop'"):
        loading.load(config | {"stage": "dop"}, for_training=False)


@pytest.mark.parametrize(
    ("stage", "example", "data", "message"),
    [
        ("dpo", "openai_pair", {"over_length": "split"}, r"data\.over_length is split, but the last answer.*\n.*pairs"),
        ("grpo", "alpaca", {"over_length": "split"}, r"data\.over_length is split, but a prompt is in one piece"),
        (
            "classification",
            "classification",
            {"template": "chatml", "max_source_length": 9, "max_target_length": 9},
            r"template is 'chatml', which have no effect on labelled texts \(stage: classification or regression\)",
        ),
        (
            "pretrain",
            "text",
            {"preprocessing_num_workers": 2},
            r"preprocessing_num_workers is 2, which has no effect on plain",
        ),
        ("pretrain", "text", {"over_length": "drop"}, r"which has no effect on plain text \(stage: pretrain\)"),
        (
            "kto",
            "kto",
            {"max_source_length": 9, "max_target_length": 9},
            r"have no effect on judged answers \(stage: kto",
        ),
    ],
)
def test_data_settings_without_effect_are_refused(tiny_llama: Path, stage, example, data, message) -> None:
    rows = {"train": str(FORMATS / f"{example}.jsonl"), **data}
    with pytest.raises(DataError, match=message):
        show({"model": str(tiny_llama), "data": rows, "stage": stage}, console=Console(file=StringIO()))


def test_train_on_is_a_setting_of_sft(tiny_llama: Path, write) -> None:
    turns = [{"role": role, "content": role[0] * 9} for role in ("user", "assistant") * 2]
    rows = str(write("rows.json", [{"messages": turns}]))
    trained = {}
    for train_on in ("assistant", "last", "all"):
        config = {"model": str(tiny_llama), "data": {"train": rows}, "stage": {"name": "sft", "train_on": train_on}}
        (example,) = show(config, console=Console(file=StringIO())).examples
        trained[train_on] = [span["text"] for span in example["sequences"][0] if span["weight"]]
    answer = "a" * 9 + "<|im_end|>"
    assert trained["assistant"] == [answer, answer] and trained["last"] == [answer]
    assert len(trained["all"]) == 1 and trained["all"][0].startswith("user\nuuuuuuuuu<|im_end|>\n")
