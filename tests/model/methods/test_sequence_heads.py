"""Every method with a head for classification: the head learns with it, is saved with it, and loads in plain peft or
transformers with the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.config.plugins import METHODS
from luthier.data.encoders import labelled
from luthier.data.packing import pack
from luthier.data.records import Labelled, Origin
from luthier.foundation.errors import ModelError
from luthier.model import loading
from luthier.model.heads import SequenceHead, load_head, save_head, train_head
from luthier.model.method import Apply, Method, save_for_resuming
from luthier.model.quiet import quiet_peft
from luthier.scoring.readouts import HeadAt
from luthier.scoring.scorer import Scorer
from tests.classify import bert_config, encoder_folder, labelled_rows
from tests.model.methods.test_contract import build, is_ours
from tests.tiny import tiny_folder

HEAD = SequenceHead("single_label_classification", ("bad", "good"))
# with the reason
REFUSED = {
    ("bitfit", "llama"): "has no bias terms",
    ("mam", "llama"): "no place for a head",
    ("mam", "bert"): "no place for a head",
    ("unipelt", "llama"): "no place for a head",
    ("unipelt", "bert"): "no place for a head",
    ("prompt_tuning", "distilbert"): "peft does not know the width",
    ("prefix_tuning", "distilbert"): "a prefix has no place",
    ("prefix_tuning", "deberta"): "a prefix has no place",
}
# on heads of more than a classifier, whose other modules peft does not know by name; and on a BERT without a pooler
DEEPER = ("lora", "norm_tuning", "prompt_tuning", "adapter", "freeze")
PAIRS = [(name, kind) for name in METHODS.names() for kind in ("llama", "bert")]
PAIRS += [(name, kind) for name in DEEPER for kind in ("distilbert", "deberta", "masked")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    encoders = {
        "bert": bert_config(),
        "distilbert": transformers.DistilBertConfig(
            vocab_size=12, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64
        ),
        "deberta": transformers.DebertaV2Config(
            vocab_size=12, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, pad_token_id=0,
        ),
    }  # fmt: skip
    encoders["masked"] = encoders["bert"]
    made = {kind: encoder_folder(place / kind, config) for kind, config in encoders.items()}
    weights = load_file(made["masked"] / "model.safetensors")  # as one that has learnt masked words alone
    without = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    save_file(without, made["masked"] / "model.safetensors", metadata={"format": "pt"})
    return {"llama": tiny_folder(place / "llama"), **made}


def tuned_on(folder: Path, method: Method) -> nn.Module:
    model = loading.weights_at(folder, torch.float32, head=HEAD, seed=1)
    tokenizer = loading.tokenizer_at(folder)
    how = Apply(seed=3, base_name=str(folder), total_steps=20, head=HEAD, tokenizer=tokenizer)
    tuned = method.apply(model, how)
    if not hasattr(tuned, "peft_config"):
        train_head(model, pure_bf16=False)
    return tuned


def scorer_of(model: nn.Module) -> Scorer:
    return Scorer(model, pad_token_id=0).eval()


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair not in REFUSED])
def test_head_and_method_learn_are_saved_and_loaded(
    name: str, kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders[kind]
    tokenizer = loading.tokenizer_at(folder)
    encode = labelled.build(labelled.Options(labels=HEAD.labels), tokenizer, None)
    records = [Labelled(row["text"], row["label"], Origin("f", 1)) for row in labelled_rows(6)]
    batch = pack(encode(records).examples)
    method = build(name)
    tuned = tuned_on(folder, method)
    scorer = scorer_of(tuned)
    before = {key: value.detach().clone() for key, value in tuned.named_parameters()}
    optimizer = torch.optim.AdamW([value for value in tuned.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(2):  # the first step of an update that starts at zero moves one factor alone
        logits = scorer(batch, HeadAt())[HeadAt()]
        nn.functional.cross_entropy(logits, batch.extras["label"].long()).backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {key for key, value in tuned.named_parameters() if not torch.equal(value, before[key])}
    in_head = {key for key in changed if ".score." in f".{key}" or ".classifier." in f".{key}"}
    assert in_head and changed - in_head, "the head learns, and something else"
    assert all(dict(tuned.named_parameters())[key].requires_grad for key in changed)

    with torch.no_grad():
        expected = scorer(batch, HeadAt())[HeadAt()]
    saved = tmp_path / "saved"
    saved.mkdir()
    method.save(tuned, saved)
    save_for_resuming(method, tuned, saved)
    tokenizer.save_pretrained(saved)
    if method.saves == "adapter":
        save_head(HEAD, tuned, saved)
    base, adapter = (folder, saved) if method.saves == "adapter" else (saved, None)
    again = loading.load(loading.ModelSource(base, adapter, str(base), None, ""), torch.float32)
    resumed = tuned_on(folder, method)
    method.load(resumed, saved)
    load_head(resumed, saved)
    with torch.no_grad():
        assert torch.allclose(scorer_of(again)(batch, HeadAt())[HeadAt()], expected, atol=2e-6)
        assert torch.allclose(scorer_of(resumed)(batch, HeadAt())[HeadAt()], expected, atol=2e-6)
        if not is_ours(name):
            assert torch.allclose(plain_logits(saved, tokenizer, records), expected, atol=1e-5)


def plain_logits(saved: Path, tokenizer: Any, records: list[Labelled]) -> Tensor:
    """A row at a time, by what a user has without luthier."""
    if (saved / "config.json").is_file():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(saved)
        assert model.config.id2label == {0: "bad", 1: "good"} and model.config.pad_token_id is not None
    else:
        head = json.loads((saved / "head.json").read_text())
        assert head["id2label"] == {"0": "bad", "1": "good"}
        with quiet_peft():
            model = AutoPeftModelForSequenceClassification.from_pretrained(saved, num_labels=head["num_labels"])
    model.eval()
    return torch.cat([model(**tokenizer(record.text, return_tensors="pt")).logits for record in records])


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_what_does_not_fit_is_refused_on_the_skeleton(name: str, kind: str, folders: dict[str, Path]) -> None:
    model = loading.skeleton(loading.config_at(folders[kind]), head=HEAD)
    with pytest.raises(ModelError, match=REFUSED[name, kind]):
        build(name).apply(model, Apply(seed=0, head=HEAD))


@pytest.mark.parametrize("name", ["lora", "adalora", "vera", "oft"])
def test_no_update_stands_beside_the_head(
    name: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tuned_on(folders["llama"], build(name))
    assert "score" not in capsys.readouterr().err, "nothing is said of the head's width"
    beside = {key.rpartition(".score.")[2] for key, _ in tuned.named_parameters() if ".score." in key}
    assert beside == {"original_module.weight", "modules_to_save.default.weight"}


def test_an_adapter_without_a_part_of_the_head_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """As peft alone writes it: what is missing would be random at every reading."""
    folder = folders["deberta"]
    tuned = tuned_on(folder, METHODS.load("lora").build(METHODS.load("lora").Options(target_modules=["query_proj"])))
    trained = {name for name, value in tuned.named_parameters() if value.requires_grad and "lora" not in name}
    assert trained == {
        f"base_model.model.{name}.{key}"
        for name in ("pooler.modules_to_save.default.dense", "classifier.modules_to_save.default")
        for key in ("weight", "bias")
    }
    build("lora").save(tuned, tmp_path)
    loading.tokenizer_at(folder).save_pretrained(tmp_path)
    save_head(HEAD, tuned, tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "modules_to_save": ["classifier"]}))
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "pooler" not in name}, file)
    source = loading.ModelSource(folder, tmp_path, str(folder), None, "")
    with pytest.raises(
        ModelError, match=r"has pooler\.dense\.bias, pooler\.dense\.weight, which are of Deberta.* random"
    ):
        loading.load(source, torch.float32)
