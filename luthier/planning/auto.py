"""From rows, a model and a machine to a config, by rules that docs/auto.md states; each choice with its reason.

The rules are plain functions of a few counts; fitting.py changes what must be for the run to fit into memory and time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

MOST_WEIGHT = 10.0  # of a row of a rare class

Kind = Literal["conversations", "pairs", "text", "classes", "numbers"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found out about rows, model and machine.

    Args:
        kind: what the rows are.
        rows: that can be used; rejected: that can't, of all that were read; unrendered: that the template or the encoder
            refuses, of the sample. sampled: whether rows were left out of it.
        token_lengths: of a sample of the rows, in tokens, sorted; of text, of the whole rows before they are cut into blocks.
        trained_tokens: of all rows together, estimated from the sample; of rows with labels, the labels.
        has_tools: whether rows call tools.
        classes: labels in the order of their numbers, and their counts, for rows with labels. several_labels: whether rows
            have several of them, or none.
        template: the first chat template that renders the rows: auto is the tokenizer's own; "": none is needed.
        template_reason: why that one.
        parameters: of the model. width: of its hidden states. layers: that it has. positions: that it knows, or None.
        reads_both_ways: whether it is an encoder, as BERT is.
        device: cpu, cuda or mps. precision: of autocast, where steps are faster than in float32: bf16, fp16 or "".
        free_bytes: memory that is free there.
        can_quantize: whether 4-bit weights can be trained on here.
    """

    kind: Kind
    rows: int
    rejected: int
    token_lengths: tuple[int, ...]
    trained_tokens: int
    has_tools: bool
    classes: dict[str, int]
    template: str
    template_reason: str
    parameters: int
    width: int
    layers: int
    positions: int | None
    reads_both_ways: bool
    device: str
    precision: str
    free_bytes: int
    can_quantize: bool
    unrendered: int = 0
    sampled: bool = False
    several_labels: bool = False

    def length_at(self, share: float) -> int:
        """A quantile of the sample's lengths."""
        place = min(len(self.token_lengths) - 1, math.ceil(share * len(self.token_lengths)) - 1)
        return self.token_lengths[max(0, place)]

    @property
    def longest(self) -> int:
        """Of the sample."""
        return self.token_lengths[-1]


@dataclass(frozen=True, slots=True)
class Choice:
    """A key of the config, its value, and why."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a config takes: bytes at the peak, and seconds of an optimizer step."""

    peak_bytes: int
    seconds_per_step: float


def choose(facts: Facts, model: str, data: str, output_dir: str) -> tuple[Choice, ...]:
    """A config for these facts, before memory and time are looked at."""
    choices = [
        Choice("model", model, f"{facts.parameters / 1e6:,.0f} million parameters"),
        Choice("data.train", data, _rows(facts)),
        *_held_out(facts),
        *_rows_and_lengths(facts),
        _stage(facts),
        *chosen_method(facts),
        *_steps(facts),
        *_precision(facts),
        Choice("output_dir", output_dir, "the run's folder"),
    ]
    return tuple(choices)


def value_of(choices: tuple[Choice, ...], key: str, default: Any = None) -> Any:
    """The value that was chosen for a key."""
    return next((choice.value for choice in choices if choice.key == key), default)


def changed(choices: tuple[Choice, ...], *others: Choice) -> tuple[Choice, ...]:
    """The choices with others in their place; new ones stand before output_dir."""
    named = {choice.key: choice for choice in others}
    kept = [named.pop(choice.key, choice) for choice in choices]
    return (*kept[:-1], *named.values(), kept[-1])


def _rows(facts: Facts) -> str:
    what = {
        "conversations": "conversations",
        "pairs": "pairs of answers, one preferred",
        "text": "texts",
        "classes": "texts with a class",
        "numbers": "texts with a number",
    }
    tools = ", some of which call tools" if facts.has_tools else ""
    learnt = "" if facts.kind in ("classes", "numbers") else f", about {facts.trained_tokens:,} trained tokens"
    return f"{facts.rows:,} {what[facts.kind]}{tools}{learnt}"


def _held_out(facts: Facts) -> list[Choice]:
    if facts.rows < 20:
        return []
    value: float | int
    if facts.rows < 1000:
        value, why = 0.1, "a tenth of the rows is held out, never trained on, and scored as training goes on"
    elif facts.rows < 10_000:
        value, why = 0.05, "a twentieth of the rows is held out and scored as training goes on"
    else:
        value, why = (
            500,
            "500 rows are held out and scored as training goes on: more would cost time, and tell the same",
        )
    return [Choice("data.validation", value, why)]


def _rows_and_lengths(facts: Facts) -> list[Choice]:
    choices = []
    if facts.template:
        choices.append(Choice("data.template", facts.template, facts.template_reason))
    length, why = _cutoff(facts)
    choices.append(Choice("data.cutoff_length", length, why))
    why = _why_reject(facts)
    if why:
        choices.append(
            Choice("data.invalid_rows", "reject", f"{why}; such rows are counted, and written to rejected.jsonl")
        )
    return choices


def _why_reject(facts: Facts) -> str:
    """What is wrong with rows, or may be with those that were not tokenized; empty where all are known to be good."""
    found = []
    if facts.rejected:
        found.append(f"{facts.rejected:,} rows can't be used")
    if facts.unrendered:
        seen = " of the sample" if facts.sampled else ""
        found.append(f"the template refuses {facts.unrendered:,} rows{seen}")
    elif facts.sampled and facts.template:
        found.append("the template was tried on a sample, and may refuse others")
    return "; ".join(found)


def _cutoff(facts: Facts) -> tuple[int, str]:
    known = facts.positions or 2**20
    if facts.kind == "text":
        length = min(1024, known)
        return length, f"texts are joined and cut into blocks of {length} tokens; nothing is lost"
    sampled = facts.rows > len(facts.token_lengths)
    if facts.kind == "pairs" and facts.longest >= known:  # which are looked at as far as the model reads
        return known, f"the model knows {known:,} positions, and some answers reach them; longer ones are cut"
    wanted = 64 * math.ceil(facts.longest * (1.25 if sampled else 1) / 64)
    if wanted > known:
        return (
            known,
            f"the model knows {known:,} positions; rows have up to {facts.longest:,} tokens, and longer ones are cut",
        )
    seen = " seen" if sampled else ""
    room = ", and a quarter more is allowed" if sampled else ""
    return max(
        64, wanted
    ), f"the longest row{seen} has {facts.longest:,} tokens{room}: nothing is padded, so length costs nothing"


def _stage(facts: Facts) -> Choice:
    if facts.kind == "text":
        return Choice("stage", "pretrain", "plain text has no questions and answers: every token is learnt")
    if facts.kind == "classes":
        return _classification(facts)
    if facts.kind == "numbers":
        return Choice("stage", "regression", "rows have a number to predict")
    if facts.kind == "pairs":
        return Choice("stage", "dpo", "rows prefer one answer to another: direct preference optimization")
    return Choice("stage", "sft", "rows are conversations: the assistant's answers are learnt")


def _classification(facts: Facts) -> Choice:
    """The stage with its classes, so that a sample or a split that lacks one changes none of their numbers."""
    counts = facts.classes
    often = sorted(counts, key=lambda name: -counts[name])
    shown = ", ".join(often[:6]) + (", ..." if len(often) > 6 else "")
    stage: dict[str, Any] = {"name": "classification"}
    if len(counts) > 1:
        stage["labels"] = list(counts)
    if facts.several_labels:
        stage["multi_label"] = True
        return Choice("stage", stage, f"rows have several labels, or none: {len(counts)} in all ({shown})")
    why = f"rows have a label: {len(counts)} classes ({shown})"
    if min(counts.values()) * 3 >= max(counts.values()):
        return Choice("stage", stage, why)
    total = sum(counts.values())
    weights = {name: total / (len(counts) * count) for name, count in counts.items()}
    if max(weights.values()) <= MOST_WEIGHT:
        return Choice("stage", {**stage, "class_weights": "balanced"}, f"{why}, of uneven size: each counts alike")
    capped = {name: float(f"{min(MOST_WEIGHT, weight):.3g}") for name, weight in weights.items()}
    return Choice(
        "stage",
        {**stage, "class_weights": capped},
        f"{why}, of very uneven size: each counts alike, but no row more than {MOST_WEIGHT:g} times, or a few would decide",
    )


def chosen_method(facts: Facts) -> list[Choice]:
    width = max(facts.width, 1)
    rate = _rounded(min(1e-3, max(1e-4, 5e-4 * (2000 / width) ** 0.78)))
    full_rate = _rounded(min(5e-5, rate / 10))
    labelled = facts.kind in ("classes", "numbers")
    if labelled and facts.reads_both_ways and facts.parameters < 500e6:
        return [
            Choice("method", "full", "a small encoder learns to classify best as a whole, and is small enough to"),
            Choice("training.learning_rate", full_rate, "usual for whole encoders: 2e-5 to 5e-5"),
        ]
    if facts.kind == "text" and facts.trained_tokens >= 5_000_000:
        return [
            Choice(
                "method", "full", "much text, and knowledge rather than manner: adapters have too little room for it"
            ),
            Choice("training.learning_rate", full_rate, "a tenth of what adapters take"),
        ]
    rank = 8 if facts.trained_tokens < 100_000 else 16 if facts.trained_tokens < 5_000_000 else 32
    method = {"name": "lora", "rank": rank, "alpha": 2 * rank}
    room = "a few labels" if labelled else "so many trained tokens"
    why = (
        f"learns nearly what training all weights does, in a fraction of the memory; rank {rank} has room for {room}, alpha is "
        "twice the rank, every linear layer gets an update"
    )
    if facts.kind == "pairs":
        preferring = "a twentieth of what answers are learnt with: the model must stay near the one it was"
        return [Choice("method", method, why), Choice("training.learning_rate", _rounded(rate / 20), preferring)]
    return [
        Choice("method", method, why),
        Choice("training.learning_rate", rate, f"5e-4 x (2000 / width)^0.78, between 1e-4 and 1e-3, for width {width}"),
    ]


def _rounded(value: float) -> float:
    """One digit is as exact as a rule can be."""
    digits = -math.floor(math.log10(value))
    return round(value, digits)


def held_share(facts: Facts, held_out: float | int | None) -> float:
    """The share of the rows, or texts, that is held out: `data.validation` is a share, or counts them."""
    held_out = held_out or 0
    return min(1.0, held_out / facts.rows) if held_out >= 1 else held_out


def all_rows(facts: Facts, choices: tuple[Choice, ...] = ()) -> int:
    """Rows, or blocks of text, held-out ones among them."""
    length = value_of(choices, "data.cutoff_length") or _cutoff(facts)[0]
    return max(1, facts.trained_tokens // length) if facts.kind == "text" else facts.rows


def trained_rows(facts: Facts, held_out: float | int | None, choices: tuple[Choice, ...] = ()) -> int:
    """Rows, or blocks of text, that an epoch has."""
    rows = all_rows(facts, choices)
    return max(1, round(rows - rows * held_share(facts, held_out)))


def batch_for(rows: int, least: int = 4) -> int:
    """Rows of a step: a power of two near a twenty-fifth of an epoch's."""
    most = 16 if rows < 5_000 else 32 if rows < 50_000 else 64
    near: int = 2 ** int(math.log2(max(1, rows / 25)))
    return min(most, max(least, near))


def _steps(facts: Facts) -> list[Choice]:
    held_out = _held_out(facts)
    rows = trained_rows(facts, held_out[0].value if held_out else None)
    batch = batch_for(rows)
    epochs = 6 if rows < 200 else 3 if rows < 5_000 else 2 if rows < 50_000 else 1
    if facts.kind == "text" and rows < 5_000:
        epochs = 3
    if facts.kind == "pairs":
        epochs = 1 if rows >= 1000 else 2
    steps = math.ceil(rows / batch) * epochs
    choices = [
        Choice("training.num_train_epochs", epochs, f"{rows:,} {'blocks' if facts.kind == 'text' else 'rows'}: {_why_epochs(epochs)}"),
        Choice("training.per_device_train_batch_size", batch, f"{math.ceil(rows / batch):,} steps an epoch: many small steps learn little data best"),
        Choice("training.lr_scheduler_type", "cosine", "falls to nothing at the end"),
        Choice("training.warmup_steps", 0.05, "a twentieth of the steps, until the optimizer knows its gradients"),
        Choice("training.logging_steps", max(1, steps // 40), "about 40 points of the loss curve"),
    ]  # fmt: skip
    if not held_out:
        return choices
    often = "epoch" if epochs > 1 else "steps"
    choices.append(
        Choice("training.eval_strategy", often, "the held-out rows show when learning turns into remembering")
    )
    if epochs == 1:
        choices.append(Choice("training.eval_steps", 0.25, "four times in the only epoch"))
    choices.append(Choice("training.save_strategy", often, "so that any evaluated moment can be gone back to"))
    if epochs == 1:
        choices.append(Choice("training.save_steps", 0.25, "as often"))
    held = held_out[0].value if held_out[0].value >= 1 else facts.rows * held_out[0].value
    best = "final/ has the weights of the evaluation that went best"
    if held < 50:
        best += (
            f": a rough choice, by {held:.0f} rows, and better than the last weights where few rows were seen too often"
        )
    choices.append(Choice("training.load_best_model_at_end", True, best))
    return choices


def rows_of_a_step(choices: tuple[Choice, ...]) -> int:
    """Rows, or blocks, of an optimizer step."""
    pieces: int = value_of(choices, "training.gradient_accumulation_steps", 1)
    batch: int = value_of(choices, "training.per_device_train_batch_size")
    return pieces * batch


def total_steps(facts: Facts, choices: tuple[Choice, ...]) -> int:
    """Optimizer steps of a run."""
    most: int = value_of(choices, "training.max_steps", -1)
    if most > 0:
        return most
    rows = taken_share(facts, choices) * trained_rows(facts, value_of(choices, "data.validation"), choices)
    epochs: float = value_of(choices, "training.num_train_epochs")
    return math.ceil(round(rows / rows_of_a_step(choices), 6)) * math.ceil(epochs)


def taken_share(facts: Facts, choices: tuple[Choice, ...]) -> float:
    """The share of the rows that a sample has, and that are not dropped for their length."""
    train = value_of(choices, "data.train")
    sampled = min(1.0, train["max_samples"] / facts.rows) if isinstance(train, dict) else 1.0
    return sampled * len(_kept_lengths(facts, choices)) / len(facts.token_lengths)


def tokens_of_a_step(facts: Facts, choices: tuple[Choice, ...]) -> float:
    """Tokens that a step computes, on average."""
    if facts.kind == "text":
        return float(rows_of_a_step(choices) * value_of(choices, "data.cutoff_length"))
    lengths = _kept_lengths(facts, choices)
    return rows_of_a_step(choices) * sum(lengths) / len(lengths)


def _kept_lengths(facts: Facts, choices: tuple[Choice, ...]) -> list[int]:
    """Lengths of the sample's rows as they are trained on."""
    limit = value_of(choices, "data.cutoff_length")
    dropped = value_of(choices, "data.over_length") == "drop"
    return [min(tokens, limit) for tokens in facts.token_lengths if tokens <= limit or not dropped]


def _why_epochs(epochs: int) -> str:
    return {6: "so few need to be seen often", 3: "three times is usual", 2: "twice is enough"}.get(
        epochs, "once is enough"
    )


def _precision(facts: Facts) -> list[Choice]:
    if facts.precision:
        return [
            Choice(f"training.{facts.precision}", True, "this device multiplies it several times as fast as float32")
        ]
    return []
