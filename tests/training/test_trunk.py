"""The layers below the lowest trained one are computed once, and every epoch learns as if they were computed each time."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

import luthier
from luthier.data.batch import Batch
from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.packing import pack
from luthier.data.records import Origin
from luthier.foundation.errors import ModelError, TrainingError
from luthier.model import loading
from luthier.scoring import attention, trunk
from luthier.scoring.trunk import Room, Trunk, frozen_layers, make_trunk, states_below
from tests.classify import classification_config, labelled_rows, write_json_lines
from tests.tiny import carry_first_layer_up, config_for, tiny_folder, tiny_model


def trained(kind: str, *names: str, **settings: Any) -> Any:
    model = tiny_model(kind, **settings).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if any(part in name for part in names):
            parameter.requires_grad_(True)
    return model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (trained("llama", "layers.1."), 1),
        (trained("llama", "layers.2."), 2),
        (trained("llama", "model.norm"), 2),  # the last layer is computed all the same
        (trained("llama", "lm_head"), 2),
        (trained("llama", "layers.0."), 0),
        (trained("llama", "embed_tokens", "layers.2."), 0),
        (trained("qwen2", "lm_head", "embed_tokens"), 0),  # tied: what the head learns, the embedding does
        (trained("llama", "layers.2.", attention_dropout=0.1), 0),
        (trained("gpt2", "h.2."), 0),  # its layers bear another name
    ],
)
def test_layers_below_everything_that_learns_or_drops_out(model: Any, expected: int) -> None:
    assert frozen_layers(model) == expected


def test_of_layers_that_share_a_weight_the_lowest_counts() -> None:
    model = tiny_model("llama", num_hidden_layers=4).requires_grad_(False)
    layers = model.model.layers
    layers[2].mlp = layers[1].mlp
    layers[2].mlp.requires_grad_(True)
    assert frozen_layers(model) == 1


ROOMY = Room(1.0)


def examples_of(*lengths: int) -> list[TokenizedExample]:
    def example(number: int, length: int) -> TokenizedExample:
        ids = tuple(5 + (number + place) % 200 for place in range(length))
        tokens = TokenSequence(ids, (0.0,) + (1.0,) * (length - 1))
        return TokenizedExample((tokens,), Origin("rows", number + 1), length, number=number)

    return [example(number, length) for number, length in enumerate(lengths)]


def made_of(
    model: Any,
    examples: list[TokenizedExample],
    folder: Path,
    say: Callable[[str], None] = print,
    room: Room = ROOMY,
    **identity: Any,
) -> Trunk | None:
    """The states below the second layer."""
    engine: Any = SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext)
    about = {"tokens": sum(example.tokens for example in examples), **identity}
    return make_trunk(model, 1, examples, folder, room, about, engine, say)


def test_states_have_the_precision_that_entered_the_layer(tmp_path: Path) -> None:
    """A layer's first weight may have another: packed in 4 bits, or kept in float32 for learning."""
    model = tiny_model("llama").to(torch.bfloat16)
    examples = examples_of(4)
    for _ in range(2):  # made, and read
        made = made_of(model, examples, tmp_path / "trunk")
        assert made is not None
        found = made.of(torch.arange(4), nn.Linear(1, 1))
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, states_below(model, 1, pack(examples)))


def test_an_update_on_the_upper_layers_leaves_the_lower_ones_a_trunk() -> None:
    tuned = get_peft_model(
        tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], layers_to_transform=[1, 2])
    )
    assert frozen_layers(tuned.get_base_model()) == 1


LAST_LAYER = {"name": "freeze", "trainable_layers": 1}
UPPER_LORA = {"name": "lora", "rank": 4, "target_modules": r".*layers\.[12]\..*_proj"}
HEAD_ALONE = {"name": "freeze", "trainable_layers": 0, "trainable_modules": ["score"]}


def run(
    model: Path,
    rows: Path,
    out: Path,
    limit: float = 16.0,
    resume: bool = False,
    method: Any = LAST_LAYER,
    **training: Any,
) -> list[float]:
    settings = {"max_steps": -1, "num_train_epochs": 3, "logging_steps": 1, "trunk_cache_limit_gib": limit, **training}
    stage = "classification" if method is HEAD_ALONE else "sft"
    if stage == "classification":
        rows = write_json_lines(rows.with_name("labelled.jsonl"), labelled_rows(24))
    luthier.train({**config_for(model, rows, out, **settings), "method": method, "stage": stage}, resume=resume)
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(
    ("method", "layer", "grouping"),
    [(LAST_LAYER, 2, "off"), (LAST_LAYER, 2, "within_step"), (UPPER_LORA, 1, "off"), (HEAD_ALONE, 2, "off")],
)
def test_a_run_learns_the_same_with_and_without(
    method: Any,
    layer: int,
    grouping: str,
    tiny_llama: Path,
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "grouping": grouping, "method": method}
    without = run(tiny_llama, rows, tmp_path / "without", 0, **step)
    assert "trunk" not in capsys.readouterr().err
    kept = run(tiny_llama, rows, tmp_path / "with", **step)
    told = f"trunk: the states below layer {layer} are computed once, for 24 examples"
    assert told in capsys.readouterr().err
    assert kept == pytest.approx(without, rel=1e-5) and kept[-1] < 0.99 * kept[0]
    assert not (tmp_path / "with" / "trunk").exists()


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_that_learns_is_an_embedding_that_learns(
    tied: bool, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_folder(tmp_path / "model", tie_word_embeddings=tied)
    method = {"name": "freeze", "trainable_layers": 0, "trainable_modules": ["lm_head"]}
    kept = run(model, rows, tmp_path / "with", method=method)
    assert ("trunk: the states below layer 2" in capsys.readouterr().err) == (not tied)
    assert kept == pytest.approx(run(model, rows, tmp_path / "without", 0, method=method), rel=1e-5)
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
        for folder in (model, tmp_path / "with" / "final")
    )
    assert torch.equal(before, after) == (not tied)


def test_lower_layers_are_passed_once_for_each_example(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    tokens: dict[int, int] = {}
    own = LlamaDecoderLayer.__call__

    def counted(self: Any, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        number = self.self_attn.layer_idx
        tokens[number] = tokens.get(number, 0) + hidden_states.shape[1]
        return own(self, hidden_states, *arguments, **named)

    monkeypatch.setattr(LlamaDecoderLayer, "__call__", counted)
    run(tiny_llama, rows, tmp_path / "run", num_train_epochs=5, prefix_sharing="off")
    assert tokens[2] > 3.5 * tokens[1]


@pytest.mark.parametrize("method", [LAST_LAYER, UPPER_LORA, HEAD_ALONE])
def test_a_rebuilt_trunk_has_the_same_bits_and_a_resumed_run_the_same_end(
    method: Any, tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    own = trunk.make_trunk

    def kept(*arguments: Any) -> Any:
        made = own(*arguments)
        assert made is not None
        seen.append(np.array(made.states_RH))
        return made

    monkeypatch.setattr("luthier.commands.precomputed.make_trunk", kept)
    saving = {"save_strategy": "epoch", "save_total_limit": 5, "method": method}
    whole = run(tiny_llama, rows, tmp_path / "run", **saving)
    for gone in (sorted((tmp_path / "run" / "checkpoints").iterdir())[-1], tmp_path / "run" / "final"):
        shutil.rmtree(gone)
    assert run(tiny_llama, rows, tmp_path / "run", resume=True, **saving) == whole
    assert len(seen) == 2 and np.array_equal(seen[0], seen[1])


@pytest.mark.parametrize("changed", ["nothing", "weights", "tokens", "precision"])
def test_a_trunk_of_another_model_or_other_tokens_is_made_anew(
    changed: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights written over in place keep their names, sizes and header; a user's own format may make other tokens;
    another processor has units for 16 bits."""
    from safetensors.torch import save_file

    from luthier.commands import train
    from luthier.data import preparing

    def fail(*arguments: Any) -> None:
        raise RuntimeError("before the trunk goes")

    base = tiny_folder(tmp_path / "base")
    file, own = base / "model.safetensors", preparing.from_cache
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="before the trunk goes"):
        patched.setattr(train, "_write_final", fail)
        run(base, rows, tmp_path / "run", method=UPPER_LORA, save_strategy="epoch")
    if changed == "weights":
        save_file({name: weight * 1.5 for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})
    if changed == "tokens":

        def other(*arguments: Any) -> Any:
            sets = own(*arguments)
            tokens = sets.splits["train"]._arrays.tokens
            sets.splits["train"]._arrays = sets.splits["train"]._arrays._replace(tokens=tokens // 2)
            return sets

        monkeypatch.setattr(preparing, "from_cache", other)
    if changed == "precision":
        monkeypatch.setattr(loading, "choose_dtype", lambda *_: torch.bfloat16)
    capsys.readouterr()
    run(base, rows, tmp_path / "run", resume=True, method=UPPER_LORA, save_strategy="epoch")
    assert ("are computed once" in capsys.readouterr().err) == (changed != "nothing")


def test_positions_that_stretch_with_a_batch_have_no_trunk(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the length that the model knows, a sequence's states do not depend on those beside it, and there is one."""
    stretched = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    for known, kept in ((32, False), (64, True)):
        base = tiny_folder(tmp_path / f"base-{known}", max_position_embeddings=known, rope_parameters=stretched)
        run(base, rows, tmp_path / f"run-{known}")
        said = capsys.readouterr().err
        assert ("trunk: " in said) == kept
        assert ("a sequence of more than 32 tokens (there are some of up to 64) stretches" in said) == (not kept)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, float("inf")),
        ({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, float("inf")),
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 256),
        (
            {
                "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16,
                "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
            },
            16,
        ),
    ],
)  # fmt: skip
def test_up_to_which_length_a_sequence_leaves_others_alone(rope: dict[str, Any], expected: float) -> None:
    from luthier.scoring.dynamic_positions import independent_length
    from luthier.scoring.scorer import Scorer

    model = tiny_model("llama", rope_parameters=rope)
    assert independent_length(model) == expected
    scorer = Scorer(model).eval()

    def example(length: int) -> TokenizedExample:
        tokens = TokenSequence(tuple(range(3, 3 + length)), (0.0,) + (1.0,) * (length - 1))
        return TokenizedExample((tokens,), Origin("rows", 1), length)

    def first(*beside: int) -> torch.Tensor:
        with torch.no_grad():
            return scorer(pack([example(12), *map(example, beside)])).logp_N[:11]

    short, long = (16, 17) if expected == 16 else (200, 257) if expected == 256 else (16, 256)
    assert torch.allclose(first(short), first(), atol=1e-6)
    assert torch.allclose(first(long), first(), atol=1e-4) == (expected == float("inf"))


def test_a_trunk_that_is_too_large_is_not_made(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny_llama, rows, tmp_path / "run", 1e-6)
    assert "more than training.trunk_cache_limit_gib; they are computed in every epoch" in capsys.readouterr().err


def test_a_trunk_that_cannot_be_written_ends_no_run(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with a quota: the system refuses what goes beyond so many bytes of a file."""
    expected = run(tiny_llama, rows, tmp_path / "expected", 0)
    own = trunk.make_trunk

    def short(*arguments: Any) -> Any:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            return own(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr("luthier.commands.precomputed.make_trunk", short)
    capsys.readouterr()
    assert run(tiny_llama, rows, tmp_path / "run") == expected
    said = capsys.readouterr().err
    assert "trunk: not kept, since" in said and "File too large" in said and "are computed in every epoch" in said
    assert not list((tmp_path / "run").glob("*trunk*")) and not list((tmp_path / "run").glob(".trunk*"))


def test_of_label_words_the_right_answer_alone_is_kept(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row has an answer for each class, of which a run computes one."""
    data = write_json_lines(tmp_path / "labelled.jsonl", labelled_rows(24))
    kept: list[int] = []
    own = trunk.make_trunk

    def counted(*arguments: Any) -> Any:
        made = own(*arguments)
        assert made is not None
        kept.append(len(made.states_RH))
        return made

    monkeypatch.setattr("luthier.commands.precomputed.make_trunk", counted)
    found = []
    for limit in (0, 16):
        settings = {"max_steps": -1, "num_train_epochs": 2, "trunk_cache_limit_gib": limit, "prefix_sharing": "off"}
        config = config_for(tiny_llama, data, tmp_path / f"run{limit}", logging_steps=1, **settings)
        luthier.train({**config, "method": LAST_LAYER, "stage": {"name": "classification", "head": "generative"}})
        found.append(list(map(json.loads, (tmp_path / f"run{limit}" / "metrics.jsonl").read_text().splitlines())))
    losses, tokens = (
        [[line[name] for line in lines if "loss" in line] for lines in found] for name in ("loss", "tokens")
    )
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and tokens[1] == tokens[0]
    assert kept == [sum(tokens[1]) // 2]


def test_passes_are_bounded_in_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole examples in their order, and one at least; each has the states that it has alone."""
    model, examples = tiny_model("llama"), examples_of(4, 5, 2, 12, 1, 9)
    model.set_attn_implementation(attention.NAME)
    rows: list[int] = []
    own = trunk.states_below

    def counted(model: Any, layer: int, batch: Batch) -> torch.Tensor:
        rows.append(len(batch.input_ids_T))
        return own(model, layer, batch)

    monkeypatch.setattr(trunk, "states_below", counted)
    monkeypatch.setattr(trunk, "TOKENS_AT_ONCE", 10)
    made = made_of(model, examples, tmp_path / "trunk")
    assert rows == [4, 9, 2, 12, 10]  # the first: whether the layers above go on from its states
    with torch.no_grad():
        alone = torch.cat([own(model, 1, pack([example])) for example in examples])
    assert made is not None and torch.allclose(made.of(torch.arange(33), nn.Linear(1, 1)), alone, atol=1e-6)


def test_what_checkpoints_need_is_no_room_for_a_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "free_bytes", lambda place: 1000)
    assert Room(1.0).refusal(2, 500, tmp_path) == Room(1.0, 600).refusal(2, 200, tmp_path) == ""
    told = Room(1.0, 600).refusal(2, 201, tmp_path)
    assert "would take 201 B of the 1000 B that are free in" in told and "600 B of which are for checkpoints" in told


def test_a_trunk_that_is_not_to_be_used_gives_its_room_back(tmp_path: Path) -> None:
    """Beyond a limit that was lowered; and what a killed process left of one, before the room is asked for."""
    model, examples, folder = tiny_model("llama"), examples_of(6, 6), tmp_path / "trunk"
    assert made_of(model, examples, folder) is not None
    assert made_of(model, examples, folder, room=Room(1e-9)) is None and not folder.exists()
    left = tmp_path / ".trunk.building-dead"
    left.mkdir()
    (left / "states.f32").write_bytes(bytes(100))
    assert made_of(model, examples, folder, room=Room(1e-9)) is None and not left.exists()


def test_a_run_without_a_trunk_removes_the_one_it_had(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """What is advised where a disk or memory is full, and room for checkpoints is asked for afterwards."""
    saving = {"save_strategy": "epoch", "save_total_limit": 5}
    whole = run(tiny_llama, rows, tmp_path / "run", **saving)
    for gone in (sorted((tmp_path / "run" / "checkpoints").iterdir())[-1], tmp_path / "run" / "final"):
        shutil.rmtree(gone)
    for left in ("trunk", ".trunk.building-dead"):
        (tmp_path / "run" / left).mkdir()
    assert run(tiny_llama, rows, tmp_path / "run", 0, resume=True, **saving) == pytest.approx(whole, rel=1e-5)
    assert not list((tmp_path / "run").glob("*trunk*")) and not list((tmp_path / "run").glob(".trunk*"))


def test_where_memory_runs_out_meanwhile_to_do_without_is_advised(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(trunk, "states_below", exhausted)
    with pytest.raises(TrainingError) as error:
        run(tiny_llama, rows, tmp_path / "run")
    assert error.value.remedy.startswith("Try, one after another: training.trunk_cache_limit_gib=0; ")


def test_room_is_asked_for_once_a_trunk_of_another_model_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole one takes no more; one that is made anew does, and has the room of the old."""
    model, examples, folder = tiny_model("llama"), examples_of(6, 6), tmp_path / "trunk"
    needed = 4 * 32 * 12
    assert made_of(model, examples, folder) is not None
    # a disk of two such trunks, of whose free part half stays free
    monkeypatch.setattr(trunk, "free_bytes", lambda place: (1 if folder.exists() else 2) * needed)
    assert made_of(model, examples, folder, weights="other") is not None
    monkeypatch.setattr(trunk, "free_bytes", lambda place: needed)
    assert made_of(model, examples, folder, weights="other") is not None
    said: list[str] = []
    assert made_of(model, examples, folder, said.append, weights="third") is None
    assert len(said) == 1 and "that are free in" in said[0] and not folder.exists()


@pytest.mark.parametrize("told_by", ["small copy", "model"])
def test_a_family_that_does_not_go_on_from_its_states_computes_all(
    told_by: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the small copy does not tell, the first example does."""
    own_kind = {"small copy": 2e-6, "model": 3e-6}  # what the probe found of others is kept
    model = tiny_folder(tmp_path / "model", rms_norm_eps=own_kind[told_by])
    if told_by == "model":
        run(model, rows, tmp_path / "before", max_steps=1)
    carry_first_layer_up(monkeypatch)
    expected = run(model, rows, tmp_path / "expected", 0)
    capsys.readouterr()
    assert run(model, rows, tmp_path / "run") == expected
    said = capsys.readouterr().err
    assert said.count("trunk: none: in this family the layers above need more than the states that reach them") == 1
    assert "computed once" not in said


@pytest.mark.parametrize(("kind", "last"), [("granite", 2), ("gemma3", 3)])
def test_families_that_scale_embeddings_or_count_their_layers_go_on(
    kind: str, last: int, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Granite multiplies embeddings in its forward pass; Gemma 3 takes a layer's positions by the layer's number."""
    model = tiny_folder(tmp_path / "model", kind)
    kept = run(model, rows, tmp_path / "with")
    assert f"trunk: the states below layer {last} are computed once" in capsys.readouterr().err
    assert kept == pytest.approx(run(model, rows, tmp_path / "without", 0), rel=1e-5) and kept[-1] < 0.99 * kept[0]


def test_a_head_learns_alone_on_a_trunk(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Linear probing: nothing of the backbone changes, and all but its last layer is computed once."""
    examples = write_json_lines(tmp_path / "rows.jsonl", labelled_rows(40))
    losses = []
    for limit in (0, 16):
        config = classification_config(
            tiny_llama, examples, tmp_path / f"run{limit}", {"name": "freeze", "trainable_layers": 0},
            num_train_epochs=2, logging_steps=1, trunk_cache_limit_gib=limit,
        )  # fmt: skip
        result = luthier.train(config)
        losses.append([line["loss"] for line in result.history if "loss" in line])
    said = capsys.readouterr().err
    assert said.count("the states below layer 2 are computed once") == 1 and "64 of " in said
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_llama, tmp_path / "run16" / "final"))
    changed = {name for name, value in after.items() if name not in before or not torch.equal(value, before[name])}
    assert changed == {"score.weight"}


def test_without_a_head_something_must_be_chosen(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    method = {"name": "freeze", "trainable_layers": 0}
    with pytest.raises(ModelError, match="so nothing would learn"):
        luthier.train({**config_for(tiny_llama, rows, tmp_path / "run"), "method": method})
