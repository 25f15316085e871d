"""Heads for classification: both routes equal transformers' own forward in value and gradient, decoders and encoders."""

from __future__ import annotations

import pytest
import torch
import transformers
from hypothesis import example as example_of
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from luthier.data.encoders import labelled
from luthier.data.packing import pack
from luthier.data.records import Labelled, Origin
from luthier.foundation.errors import ModelError
from luthier.scoring.probe import probe
from luthier.scoring.readouts import HeadAt, TargetLogp
from luthier.scoring.scorer import Scorer
from tests.classify import bert_config, bert_tokenizer, labelled_rows
from tests.scoring.test_routes import TOLERANCE, example, gradients, relative
from tests.tiny import KINDS, tiny_model

PAD = 0
CLASSES = {
    "llama": transformers.LlamaForSequenceClassification,
    "qwen2": transformers.Qwen2ForSequenceClassification,
    "gpt2": transformers.GPT2ForSequenceClassification,
}


def classifier(kind: str) -> transformers.PreTrainedModel:
    config = tiny_model(kind).config
    config.num_labels = 3
    torch.manual_seed(0)
    model = CLASSES[kind](config).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(0.0, 0.15)
    return model


def padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("route", ["segmented", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_decoders_equal_transformers_own_forward(kind: str, route: str) -> None:
    model = classifier(kind)
    rows = [[5, 6, 7, 8, 9], [11, 12], [20, 21, 22, PAD], [30]]  # one ends in the token that pads
    weights = torch.tensor([[1.0, -2.0, 0.5]])
    plain = model(**padded(rows), use_cache=False).logits
    (plain * weights).sum().backward()
    expected = gradients(model)
    model.zero_grad(set_to_none=True)

    scorer = Scorer(model, route, pad_token_id=PAD)
    logits = scorer(pack([example(row, [0.0] * len(row)) for row in rows]), HeadAt())[HeadAt()]
    (logits * weights).sum().backward()
    assert scorer.route == route and relative(logits, plain) < TOLERANCE
    found = gradients(model)
    assert found.keys() == expected.keys()
    scale = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert all((found[name] - expected[name]).norm() < TOLERANCE * scale for name in expected)


def test_texts_that_share_their_beginning_are_read_each_at_its_own_end() -> None:
    """One is the beginning of another, and one stands there twice."""
    rows = [[5, 6, 7], [5, 6, 7, 8, 9], [5, 6, 7], [5, 6, 10], [5, 6, 7, PAD]]
    examples = [example(row, [0.0] * len(row)) for row in rows]
    scorer = Scorer(classifier("llama"), "segmented", pad_token_id=PAD)
    with torch.no_grad():
        apart, shared = (scorer(pack(examples, share), HeadAt())[HeadAt()] for share in (False, True))
    assert len(pack(examples, share=True).input_ids_T) < sum(map(len, rows))
    assert relative(shared, apart) < TOLERANCE


TEXT = [5, 6, 7, 8, 9, 10, 11, 12, 13, PAD, 14, 15, 16, 17, 18, 19, 20, 21]


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(
        st.builds(
            lambda length, own, padding: [*TEXT[:length], *own, *[PAD] * padding],
            st.sampled_from([0, 8, 9, 10, 18]),
            st.lists(st.integers(PAD, 6), max_size=2),
            st.sampled_from([1, 2, 10]),
        ),
        min_size=2,
        max_size=6,
    )
)
@example_of(texts=[[*TEXT[:9], PAD], [*TEXT[:9], 30, PAD]])
@example_of(texts=[[*TEXT[:8], *[PAD] * 10], [*TEXT[:8], *[PAD] * 9, 5], [*TEXT[:8], 6], [PAD, PAD], [PAD]])
def test_texts_that_end_in_the_token_that_pads_are_read_before_it(texts: list[list[int]]) -> None:
    """A tokenizer may end each text with the token that it pads with. Where one text begins another, the segment that it ends
    in holds that token alone. Shared or not, both routes read what transformers' own forward reads."""
    model = classifier("llama")
    batches = [pack([example(text, [0.0] * len(text)) for text in texts], share) for share in (False, True)]
    with torch.no_grad():
        plain = model(**padded(texts), use_cache=False).logits
        for route in ("padded", "segmented"):
            scorer = Scorer(model, route, pad_token_id=PAD)
            for batch in batches:
                assert relative(scorer(batch, HeadAt())[HeadAt()], plain) < TOLERANCE, route


def test_a_head_under_an_adapter_is_the_trained_copy() -> None:
    model = get_peft_model(classifier("llama"), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
    model.base_model.model.score.modules_to_save["default"].weight.data.normal_()
    rows = [[5, 6, 7], [8, 9]]
    scorer = Scorer(model, "segmented", pad_token_id=PAD)
    logits = scorer(pack([example(row, [0.0] * len(row)) for row in rows]), HeadAt())[HeadAt()]
    model.get_base_model().set_attn_implementation("eager")
    assert relative(logits, model(**padded(rows), use_cache=False).logits) < TOLERANCE
    logits.sum().backward()
    assert model.base_model.model.score.modules_to_save["default"].weight.grad is not None


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_encoders_equal_transformers_own_forward(pairs: bool, lora: bool) -> None:
    tokenizer, rows = bert_tokenizer(), labelled_rows(5, pairs=pairs)
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(bert_config(num_labels=2)).eval()
    if lora:
        adapter = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
        model = get_peft_model(model, adapter)
    texts = [row["text"] for row in rows], [row["text_pair"] for row in rows] if pairs else None
    plain = model(**tokenizer(*texts, padding=True, return_tensors="pt")).logits
    encode = labelled.build(labelled.Options(labels=("bad", "good")), tokenizer, None)
    records = [Labelled(row["text"], row["label"], Origin("f", 1), row.get("text_pair")) for row in rows]
    batch = pack(encode(records).examples)
    scorer = Scorer(model, pad_token_id=tokenizer.pad_token_id)
    logits = scorer(batch, HeadAt())[HeadAt()]
    assert scorer.route == "padded" and "pooler of its own" in scorer.finding.reason
    assert relative(logits, plain) < TOLERANCE
    assert batch.extras["label"].tolist() == [float(row["label"] == "good") for row in rows]
    with pytest.raises(ValueError, match="has only its own head"):
        scorer(batch, [HeadAt(), TargetLogp()])


def xlnet(**changes: object) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.XLNetConfig(
        vocab_size=12, d_model=32, n_layer=2, n_head=4, d_inner=48, dropout=0.0, summary_last_dropout=0.0, num_labels=2,
        pad_token_id=0, **changes,
    )  # fmt: skip
    model = transformers.XLNetForSequenceClassification(config).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(0.0, 0.15)
    return model


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_a_head_that_reads_the_last_column_finds_no_padding_there(pairs: bool, lora: bool) -> None:
    """XLNet gives a text the numbers that it has alone, whatever stands beside it."""
    tokenizer, rows, model = bert_tokenizer(), labelled_rows(5, pairs=pairs), xlnet()
    if lora:
        adapter = LoraConfig(
            task_type="SEQ_CLS", r=2, target_modules=["layer_1"], init_lora_weights=False,
            modules_to_save=["sequence_summary", "logits_proj"],
        )  # fmt: skip
        model = get_peft_model(model, adapter)
    alone = [
        model(**tokenizer(row["text"], row["text_pair"] if pairs else None, return_tensors="pt")).logits for row in rows
    ]
    encode = labelled.build(labelled.Options(labels=("bad", "good")), tokenizer, None)
    records = [Labelled(row["text"], row["label"], Origin("f", 1), row.get("text_pair")) for row in rows]
    examples = encode(records).examples
    assert len({example.tokens for example in examples}) > 1, "there is padding"
    logits = Scorer(model, pad_token_id=0).eval()(pack(examples), HeadAt())[HeadAt()]
    assert relative(logits, torch.cat(alone)) < TOLERANCE


def test_heads_that_padding_changes_on_either_side_are_refused() -> None:
    with pytest.raises(ModelError, match="reads padding like text: summary_type is mean"):
        Scorer(xlnet(summary_type="mean"))
    prompts = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2, token_dim=32, num_layers=2)
    with pytest.raises(ModelError, match="padded on the left, where virtual tokens stand"):
        Scorer(get_peft_model(xlnet(), prompts))


def test_the_probe_tells_who_pools_at_the_last_token() -> None:
    decoder = classifier("llama")
    found = probe(decoder.config, type(decoder))
    assert (found.pools_last, found.segmented) == (True, True)
    encoder = transformers.BertForSequenceClassification(bert_config())
    assert not probe(encoder.config, type(encoder)).pools_last
