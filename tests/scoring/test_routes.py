"""Scores and gradients: segmented = padded = plain transformers, within and across segments."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from luthier.data.batch import Batch, Segment
from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.packing import pack
from luthier.data.records import Origin
from luthier.scoring.attention import Layout
from luthier.scoring.padded import unroll
from luthier.scoring.probe import probe
from luthier.scoring.scorer import Scorer
from luthier.scoring.small_copy import shrink
from tests.tiny import KINDS, tiny_model

TOLERANCE = 1e-5
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "factor": 32.0, "original_max_position_embeddings": 4096,
    "short_factor": [1.0 + 0.01 * pair for pair in range(48)], "long_factor": [1.0 + pair for pair in range(48)],
}  # fmt: skip


def example(ids: list[int], weights: list[float]) -> TokenizedExample:
    return TokenizedExample((TokenSequence(tuple(ids), tuple(weights)),), Origin("made", 1), len(ids))


def random_examples(lengths: list[int], seed: int = 0, vocabulary: int = 300) -> list[TokenizedExample]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        weights = [0.0] + [float(w) for w in torch.randint(0, 3, (length - 1,), generator=generator)]
        weights[-1] = 1.0
        made.append(example(ids, weights))
    return made


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative(value: Tensor, reference: Tensor) -> float:
    return float(((value - reference).norm() / reference.norm().clamp_min(1e-12)).detach())


def scores_and_gradients(model: torch.nn.Module, route: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    model.set_attn_implementation("sdpa")
    scorer = Scorer(model, route)
    assert scorer.route == route
    logp_N = scorer(batch).logp_N
    (-(logp_N * batch.weights_N).sum()).backward()
    return logp_N.detach(), gradients(model)


def plain_scores(model: torch.nn.Module, examples: list[TokenizedExample]) -> Tensor:
    """Each example alone through transformers' own forward and a full log-softmax."""
    found = []
    model.set_attn_implementation("eager")
    for item in examples:
        for sequence in item.sequences:
            ids = torch.tensor([sequence.input_ids])
            logp = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0].float(), dim=-1)
            for position, weight in enumerate(sequence.weights):
                if weight > 0:
                    found.append(logp[position - 1, sequence.input_ids[position]])
    return torch.stack(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[7], [5, 9, 3], [2, 30, 2, 11]])
def test_both_routes_equal_plain_transformers(kind: str, lengths: list[int]) -> None:
    model, examples = tiny_model(kind), random_examples(lengths)
    untouched = copy.deepcopy(model)  # a scorer puts functions of its own on a model
    batch = pack(examples)
    segmented, segmented_gradients = scores_and_gradients(model, "segmented", batch)
    padded, padded_gradients = scores_and_gradients(copy.deepcopy(untouched), "padded", batch)
    plain = plain_scores(untouched, examples)
    (-(plain * batch.weights_N).sum()).backward()
    plain_gradients = gradients(untouched)
    assert relative(segmented, plain) < TOLERANCE
    assert relative(padded, plain) < TOLERANCE
    assert segmented_gradients.keys() == plain_gradients.keys() == padded_gradients.keys()
    scale = torch.stack([g.norm() for g in plain_gradients.values()]).norm()
    for name, reference in plain_gradients.items():
        assert (segmented_gradients[name] - reference).norm() < TOLERANCE * scale, name
        assert (padded_gradients[name] - reference).norm() < TOLERANCE * scale, name


@pytest.mark.parametrize("kind", KINDS)
def test_changing_one_segment_leaves_the_others_bits_alone(kind: str) -> None:
    model = tiny_model(kind)
    scorer = Scorer(model, "segmented")
    first = random_examples([8, 12, 6], seed=1)
    changed = [first[0], random_examples([12], seed=2)[0], first[2]]
    changed[1] = example(list(changed[1].sequences[0].input_ids), list(first[1].sequences[0].weights))
    one, other = pack(first), pack(changed)
    with torch.no_grad():
        before, after = scorer(one).logp_N, scorer(other).logp_N
    untouched = one.sequence_of_source_N != 1
    assert torch.equal(before[untouched], after[untouched])
    assert not torch.equal(before[~untouched], after[~untouched])


def forest(parents: list[int | None], lengths: list[int], vocabulary: int, seed: int) -> Batch:
    """Every token but the roots' first is a target; a child's first token is predicted by its parent's last."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (sum(lengths),), generator=generator)
    segments: list[Segment] = []
    depth_after: list[int] = []
    positions, sources, targets, start = [], [], [], 0
    for parent, length in zip(parents, lengths, strict=True):
        offset = 0 if parent is None else depth_after[parent]
        segments.append(Segment(start, start + length, parent))
        depth_after.append(offset + length)
        positions += range(offset, offset + length)
        for token in range(start, start + length):
            source = token - 1 if token > start else None if parent is None else segments[parent].end - 1
            if source is not None:
                sources.append(source)
                targets.append(int(ids[token]))
        start += length
    # any weights, zero too; and some of the tokens are no targets
    chosen = torch.rand(len(sources), generator=generator) < 0.8
    chosen[0] = True
    weights = torch.randint(0, 4, (int(chosen.sum()),), generator=generator) / 2
    weights[0] = 1  # there is something to learn
    return Batch(
        ids, torch.tensor(positions), tuple(segments), torch.tensor(sources)[chosen], torch.tensor(targets)[chosen],
        weights, torch.zeros(len(weights), dtype=torch.long), start,
        tuple(index for index in range(len(parents)) if index not in parents),
    )  # fmt: skip


@st.composite
def forests(draw: st.DrawFn) -> Batch:
    count, depth_first = draw(st.integers(1, 6)), draw(st.booleans())
    parents: list[int | None] = [None]
    path = [
        0
    ]  # the segment before and its ancestors, below one of which the next stands if it is laid down depth first
    for index in range(1, count):
        parent = draw(st.none() | (st.sampled_from(path) if depth_first else st.integers(0, index - 1)))
        path = [*path[: path.index(parent) + 1 if depth_first and parent is not None else 0], index]
        parents.append(parent)
    lengths = [draw(st.integers(2 if parent is None else 1, 7)) for parent in parents]
    return forest(parents, lengths, 300, draw(st.integers(0, 9)))


@settings(max_examples=25, deadline=None)
@given(forests())
def test_routes_agree_on_any_forest(batch: Batch) -> None:
    model = tiny_model("llama")
    segmented, segmented_gradients = scores_and_gradients(model, "segmented", batch)
    padded, padded_gradients = scores_and_gradients(tiny_model("llama"), "padded", batch)
    assert relative(segmented, padded) < TOLERANCE
    scale = torch.stack([g.norm() for g in padded_gradients.values()]).norm()
    for name, reference in padded_gradients.items():
        assert (segmented_gradients[name] - reference).norm() < TOLERANCE * scale, name


def test_unrolling_a_worked_forest() -> None:
    # root [a b], its children [c] and [d e], and another root [f g]
    segments = (Segment(0, 2), Segment(2, 3, 0), Segment(3, 5, 0), Segment(5, 7))
    batch = Batch(
        torch.tensor([10, 11, 12, 13, 14, 15, 16]), torch.tensor([0, 1, 2, 2, 3, 0, 1]), segments,
        torch.tensor([1, 3, 5]), torch.tensor([12, 14, 16]), torch.ones(3), torch.zeros(3, dtype=torch.long), 7, (1, 2, 3),
    )  # fmt: skip
    rows = unroll(batch, pad_token_id=9)
    assert rows.input_ids_RL.tolist() == [[10, 11, 12, 9], [10, 11, 13, 14], [15, 16, 9, 9]]
    assert rows.attention_mask_RL.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert rows.position_ids_RL.tolist() == [[0, 1, 2, 0], [0, 1, 2, 3], [0, 1, 0, 0]]
    assert rows.input_ids_RL[rows.row_N, rows.column_N].tolist() == [11, 13, 15]


def test_a_layout_that_is_no_forest_is_refused() -> None:
    with pytest.raises(ValueError, match="ends at 2"):
        Layout.of((Segment(0, 2), Segment(3, 4)))
    with pytest.raises(ValueError, match="does not come before"):
        Layout.of((Segment(0, 2, 1), Segment(2, 4)))


def test_sliding_windows_count_positions() -> None:
    model = tiny_model("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=0)
    assert set(model.config.layer_types) == {"sliding_attention"}
    examples = random_examples([20, 4, 13])
    segmented, _ = scores_and_gradients(model, "segmented", pack(examples))
    plain = plain_scores(model, examples)
    assert relative(segmented, plain) < TOLERANCE
    wide = tiny_model("qwen2")
    assert relative(plain_scores(wide, examples), plain) > 1e-3, "the window must matter for this test to mean anything"


@pytest.mark.parametrize(
    ("name", "settings", "segmented", "plain_head", "reason"),
    [
        ("Llama", {}, True, True, ""),
        ("Mistral", {"sliding_window": 64}, True, True, ""),
        ("Granite", {"logits_scaling": 8.0}, True, False, ""),
        ("Cohere", {"logit_scale": 0.25}, True, False, ""),
        ("Gemma2", {}, False, False, "softcap"),
        ("GptOss", {}, False, True, "s_aux"),
        ("Bloom", {}, False, True, "differ"),
        ("Mamba", {}, False, True, "differ"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}, False, True, "differ"),
        # a factor for each pair of the large model's rotation; a part of a head that is odd in a narrow one
        ("Phi3", {"hidden_size": 3072, "rope_parameters": LONGROPE, "pad_token_id": 0}, True, True, ""),
        ("Phi", {"partial_rotary_factor": 0.4}, True, True, ""),
        # keys and values of a latent vector: values narrower than keys, and as wide
        ("DeepseekV2", {"num_experts_per_tok": 6, "n_group": 1, "topk_group": 1}, True, True, ""),
        ("DeepseekV3", {}, True, True, ""),
        ("MiniCPM3", {}, True, False, ""),
        ("Glm4MoeLite", {}, True, True, ""),
        ("Mistral4", {}, True, True, ""),  # whose head_dim is of all of a key
        ("Cwm", {}, True, True, ""),  # whose special tokens are numbers in any case
    ],
)
def test_the_probe_knows_each_family(name: str, settings: dict, segmented: bool, plain_head: bool, reason: str) -> None:
    config = getattr(transformers, f"{name}Config")(**settings)
    finding = probe(config, getattr(transformers, f"{name}ForCausalLM"))
    assert (finding.segmented, finding.plain_head) == (segmented, plain_head), finding.reason
    assert reason in finding.reason


def tiny_gemma4(**settings: Any) -> PreTrainedModel:
    """Beside towers for pictures and sounds; every third layer has wider heads, logits a soft cap."""
    text = {
        "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1,
        "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 90, "sliding_window": 8, "pad_token_id": 0,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2, "final_logit_softcapping": 3.0,
        **settings,
    }  # fmt: skip
    config = transformers.Gemma4Config(text_config=text, vision_config=None, audio_config=None)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("shared", [0, 3])
def test_a_model_whose_backbone_stands_deeper_is_scored(shared: int) -> None:
    """Gemma 4: its head's own forward, where layers of wider heads, and those that read keys of layers below."""
    # layers that share need inputs of their own, which Gemma 4 gives to each layer then
    model = tiny_gemma4(num_kv_shared_layers=shared, hidden_size_per_layer_input=8 if shared else 0)
    reference = copy.deepcopy(model)
    examples = random_examples([9, 15, 5], vocabulary=90)
    batch = pack(examples)
    assert type(model).__name__ == "Gemma4ForConditionalGeneration"
    scorer = Scorer(model)
    assert (scorer.route, scorer.finding.plain_head, scorer.finding.goes_on) == ("segmented", False, not shared)
    logp_N = scorer(batch).logp_N
    (logp_N * batch.weights_N).sum().backward()
    plain = plain_scores(reference, examples)
    (plain * batch.weights_N).sum().backward()
    assert relative(logp_N, plain) < TOLERANCE
    own = gradients(model)
    for name, gradient in gradients(reference).items():
        assert relative(own[name], gradient) < 1e-4, name


def test_values_narrower_than_keys_are_computed_alike() -> None:
    """torch's kernel for CPUs takes none; `model` is DeepSeek-V3's kind with one expert of four."""
    config = transformers.DeepseekV3Config(
        vocab_size=90, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=1,
        kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=12, first_k_dense_replace=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.DeepseekV3ForCausalLM(config).float().eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(0, 0.3)
    examples = random_examples([9, 15, 5], vocabulary=90)
    plain = plain_scores(copy.deepcopy(model), examples)
    scorer = Scorer(model)
    assert scorer.route == "segmented"
    assert relative(scorer(pack(examples)).logp_N, plain) < TOLERANCE


def test_of_a_tower_for_pictures_the_small_copy_has_one_layer() -> None:
    small = shrink(transformers.Gemma3Config())
    assert (small.vision_config.num_hidden_layers, small.text_config.num_hidden_layers) == (1, 2)


def test_the_small_copy_of_gemma4_is_small() -> None:
    """It has an embedding for each layer, too, of the whole vocabulary; and mixtures name their experts otherwise."""
    experts = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
    for config in (transformers.Gemma4Config(), transformers.Gemma4Config(text_config=experts)):
        small = transformers.AutoModelForCausalLM.from_config(shrink(config))
        assert sum(parameter.numel() for parameter in small.parameters()) < 200_000
        assert probe(config, type(small)).segmented


def chunked_llama4(**settings: Any) -> PreTrainedModel:
    """Three layers whose attention goes by chunks, and one without rotary positions whose queries are scaled by position."""
    config = transformers.Llama4TextConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, intermediate_size_mlp=48, num_hidden_layers=4, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=2, max_position_embeddings=256, bos_token_id=None,
        eos_token_id=2, pad_token_id=0, **{"attention_chunk_size": 16, "floor_scale": 16, **settings},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Llama4ForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # experts come without values
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.1)
    return model


def test_chunks_of_attention_longer_than_the_probes_sequences_are_kept_to() -> None:
    model, examples = chunked_llama4(), random_examples([40, 9, 21])
    scorer = Scorer(model, "auto")
    assert scorer.route == "padded" and "differ" in scorer.finding.reason
    logp_N = scorer(pack(examples)).logp_N
    plain = plain_scores(model, examples)
    assert relative(logp_N, plain) < TOLERANCE
    for setting in ("attention_chunk_size", "floor_scale"):
        other = chunked_llama4(**{setting: 8192})
        assert relative(plain_scores(other, examples), plain) > 10 * TOLERANCE, (
            f"{setting} must matter for this to mean anything"
        )


def test_the_small_copy_has_every_kind_of_layer() -> None:
    small = shrink(transformers.Llama4TextConfig(interleave_moe_layer_step=3))
    kept = list(zip(small.layer_types, small.no_rope_layers, strict=True))
    assert kept == [("chunked_attention", 1), ("chunked_attention", 1), ("full_attention", 0)]
    assert (small.moe_layers, small.num_hidden_layers, small.attention_chunk_size, small.floor_scale) == ([1], 3, 4, 4)
    small = shrink(transformers.DeepseekV3Config(first_k_dense_replace=3))
    assert (small.num_hidden_layers, small.first_k_dense_replace) == (2, 1)
    small = shrink(
        transformers.AfmoeConfig(num_dense_layers=2, layer_types=["sliding_attention"] * 3 + ["full_attention"] * 29)
    )
    assert (small.num_hidden_layers, small.num_dense_layers) == (3, 1)
    small = shrink(transformers.Qwen2MoeConfig(mlp_only_layers=[4], decoder_sparse_step=2))
    assert (small.mlp_only_layers, small.decoder_sparse_step, small.num_hidden_layers) == ([0], 1, 2)
    small = shrink(transformers.SmolLM3Config())
    assert small.no_rope_layers == [1, 0] and small.num_hidden_layers == 2
    small = shrink(transformers.LlamaConfig(num_hidden_layers=7))
    assert small.num_hidden_layers == 2
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
    assert (
        shrink(transformers.LlamaConfig(rope_parameters=yarn)).rope_parameters["original_max_position_embeddings"] == 4
    )


def test_the_probe_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    probe(transformers.LlamaConfig(rms_norm_eps=3e-6), transformers.LlamaForCausalLM)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("name", ["Gemma2", "Granite", "Cohere"])
def test_soft_caps_and_scales_of_a_family_are_in_the_scores(name: str) -> None:
    """The head in chunks gives what the model's own forward gives, where that is more than a linear map."""
    small = {
        "vocab_size": 90, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2,
    }  # fmt: skip
    if name == "Granite":
        small["logits_scaling"] = 8.0
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**small)).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(0, 0.6)
    examples = random_examples([9, 5], vocabulary=90)
    batch = pack(examples)
    scorer = Scorer(model)
    logp_N = scorer(batch).logp_N
    assert not scorer.finding.plain_head
    (logp_N * batch.weights_N).sum().backward()
    own = gradients(model)
    model.zero_grad(set_to_none=True)
    plain = plain_scores(model, examples)
    (plain * batch.weights_N).sum().backward()
    assert relative(logp_N, plain) < TOLERANCE
    for parameter, reference in gradients(model).items():
        assert relative(own[parameter], reference) < 1e-4, parameter


def test_a_frozen_head_that_something_listens_to_is_called() -> None:
    model = tiny_model("llama").requires_grad_(False)
    scorer = Scorer(model)
    batch = pack(random_examples([9, 5]))
    expected = scorer(batch).logp_N
    seen: list[int] = []
    handle = model.lm_head.register_forward_hook(lambda module, arguments, logits: seen.append(len(logits)))
    torch.testing.assert_close(scorer(batch).logp_N, expected, rtol=1e-5, atol=1e-5)
    assert sum(seen) == len(batch.targets_N)
    handle.remove()
    scorer(batch)
    assert sum(seen) == len(batch.targets_N)


def test_a_gradient_of_a_gradient_is_refused() -> None:
    """A backward pass that computes in place, or from what forward kept, would give a wrong one in silence."""
    model = tiny_model("llama")
    model.lm_head.requires_grad_(False)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False))
    hidden = torch.randn(5, 32, requires_grad=True)
    targets = torch.arange(5)
    scorer = Scorer(tuned)
    layer = model.model.layers[0]
    for output in (
        scorer._head.target_logp(hidden, targets),
        layer.input_layernorm(hidden),
        layer.mlp.down_proj(torch.randn(5, 48, requires_grad=True)),
        layer.mlp(hidden),
    ):
        learning = [hidden, *(p for p in tuned.parameters() if p.requires_grad)]
        found = torch.autograd.grad(output.square().sum(), learning, create_graph=True, allow_unused=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            sum(one.sum() for one in found if one is not None).backward()  # type: ignore[union-attr]


def test_frozen_head_in_one_pass_passes_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over rows in twos and columns in threes."""
    from luthier.scoring import head
    from luthier.scoring.head import _FrozenLinearLogp

    monkeypatch.setattr(head, "COLUMNS", 3)
    torch.manual_seed(0)
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    targets, position = torch.tensor([0, 6, 3, 3, 1, 2]), torch.tensor([4, 2, 0, 2, 1, 1])  # none of 3, two of 1 and 2
    expected = torch.log_softmax(hidden @ weight.T + bias, dim=-1)[position].gather(1, targets[:, None])[:, 0]
    got = _FrozenLinearLogp.apply(hidden, weight, bias, targets, position, 2)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda hidden: _FrozenLinearLogp.apply(hidden, weight, bias, targets, position, 2), (hidden,)
    )


@pytest.mark.parametrize("autocast", [False, True])
def test_in_16_bits_a_frozen_head_is_near_exact_sums(autocast: bool) -> None:
    """Of logits and weights that are rounded; and a sure target's gradient is nothing, whatever its row was rounded by."""
    from luthier.scoring.head import _FrozenLinearLogp

    torch.manual_seed(0)
    dtype = torch.float32 if autocast else torch.bfloat16
    hidden, weight = (torch.randn(*shape).bfloat16() for shape in ((40, 32), (300, 32)))
    exact = weight.clone()
    if autocast:
        weight = weight.float() * (1 + 2**-10)  # rounded away in the products
        exact = weight.bfloat16()
    targets, position = torch.arange(40) % 9, torch.arange(40)
    hidden[:20] = 8 * exact[targets[:20]]  # sure
    wide = hidden.double().requires_grad_()
    expected = torch.log_softmax(wide @ exact.double().T, dim=-1).gather(1, targets[:, None])[:, 0]
    assert float(expected[:20].detach().min()) > -1e-6
    given = hidden.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = _FrozenLinearLogp.apply(given, weight, None, targets, position, 16)
    assert got.dtype == torch.float32
    assert float((got - expected).detach().abs().max()) < 1.01  # a logit of 400 is rounded by up to 1
    (own,) = torch.autograd.grad(got.sum(), given)
    (reference,) = torch.autograd.grad(expected.sum(), wide)
    assert relative(own.double(), reference) < 2e-2
    assert float(own[:20].abs().max()) < 1e-5


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that an operator's result has: of forward and of backward."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        found = function(*arguments, **(named or {}))
        for tensor in tree_leaves(found):
            # an expanded view takes no memory
            if isinstance(tensor, Tensor) and 0 not in tensor.stride():
                self.elements = max(self.elements, tensor.numel())
        return found


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_vocabulary_wide_tensor_of_all_targets(kind: str, trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits exist for one chunk at a time, in forward and backward, whether the head is frozen or trained."""
    import luthier.scoring.head as head

    vocabulary = 2000
    monkeypatch.setattr(head, "CHUNK_BYTES", vocabulary * 4 * 16)
    monkeypatch.setattr(head, "COLUMNS", 300)
    model = tiny_model(kind, vocab_size=vocabulary)
    examples = random_examples([100, 90])
    batch = pack(examples)
    reference = plain_scores(model, examples).detach()
    wide = min(len(batch.targets_N), len(batch.input_ids_T)) * vocabulary
    if not trained:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".mlp." in name)
    # a weight of the embedding's size and its gradient are there in any case
    assert vocabulary * model.config.hidden_size < wide / 2
    with LargestTensor() as largest:
        logp_N = Scorer(model)(batch).logp_N
        logp_N.sum().backward()
    assert relative(logp_N, reference) < TOLERANCE
    assert 16 * 300 <= largest.elements < wide / 2
    with LargestTensor() as largest, torch.no_grad():
        plain_scores(model, examples)
    assert largest.elements >= wide / 2  # transformers' own forward is noticed


def test_lora_inside_the_model_is_scored() -> None:
    model = tiny_model("llama")
    examples = random_examples([10, 6])
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    scorer = Scorer(tuned)
    with torch.no_grad():
        assert relative(scorer(pack(examples)).logp_N, plain_scores(tuned.get_base_model(), examples)) < TOLERANCE


def test_a_model_that_can_not_go_segmented_says_so() -> None:
    from luthier.foundation.errors import ModelError

    config = transformers.BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=50)
    model = transformers.BloomForCausalLM(config)
    assert Scorer(model, "auto").route == "padded"
    with pytest.raises(ModelError, match="can't take that route"):
        Scorer(model, "segmented")
