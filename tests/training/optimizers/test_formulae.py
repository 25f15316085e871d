"""Each optimizer's own mathematics, on small tensors: its paper's update written out, or an independent implementation."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import LlamaForSequenceClassification

from luthier.config.loading import load
from luthier.config.plugins import METHODS, OPTIMIZERS
from luthier.config.training_section import TrainingConfig
from luthier.foundation.errors import TrainingError
from luthier.model.heads import SequenceHead, with_head
from luthier.model.method import Apply
from luthier.training.optimization import check_optimizer, make_optimizer, parameter_roles, to_evaluation, to_training
from luthier.training.optimizers import badam, galore, muon
from luthier.training.trained import Role
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.optimizers.tiny_runs import TinyRun, config_of

RATE, DECAY = 0.01, 0.1


def training_of(name: str, options: dict[str, Any] | None = None, **training: Any) -> TrainingConfig:
    settings = {"weight_decay": DECAY, "learning_rate": RATE, **training, "optim": {"name": name, **(options or {})}}
    return load({"model": "m", "data": {"train": "a"}, "training": settings}).training


def optimizer_of(training: TrainingConfig, parameters: list[nn.Parameter], role: Role = "matrix") -> Optimizer:
    """Over one group of parameters of that role."""
    count = len(parameters)
    places = {"param_names": [f"layers.{number}.weight" for number in range(count)], "param_places": list(range(count))}
    group = {"params": parameters, "role": role, "weight_decay": DECAY, "lr": RATE, **places}
    found: Optimizer = OPTIMIZERS.load(training.optim.name).build(training, [group], RATE)
    to_training(found)
    return found


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def follow(optimizer: Optimizer, parameter: nn.Parameter, gradients: list[Tensor]) -> Tensor:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach().clone()


def adamw(start: Tensor, gradients: list[Tensor], rate: float = RATE, decay: float = DECAY) -> Tensor:
    """torch's own, not fused."""
    parameter = nn.Parameter(start.clone())
    return follow(AdamW([parameter], lr=rate, weight_decay=decay), parameter, gradients)


def ours(name: str, start: Tensor, gradients: list[Tensor], options: dict[str, Any] | None = None) -> Tensor:
    parameter = nn.Parameter(start.clone())
    return follow(optimizer_of(training_of(name, options), [parameter]), parameter, gradients)


def test_lion_is_the_papers_update() -> None:
    """Algorithm 2: c = sign(b1 m + (1 - b1) g), theta <- theta - lr (c + wd theta), m <- b2 m + (1 - b2) g."""
    theta, momentum = drawn(5, 3), torch.zeros(5, 3)
    start, gradients = theta.clone(), [drawn(5, 3, seed=step) for step in range(1, 7)]
    for gradient in gradients:
        sign = torch.sign(0.9 * momentum + 0.1 * gradient)
        theta = theta - RATE * (sign + DECAY * theta)
        momentum = 0.99 * momentum + 0.01 * gradient
    torch.testing.assert_close(ours("lion", start, gradients), theta)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_textbooks(nesterov: bool) -> None:
    """v <- mu v + g + wd theta;  theta <- theta - lr v, or - lr (g + mu v) with Nesterov's look ahead."""
    theta, velocity = drawn(4), torch.zeros(4)
    start, gradients = theta.clone(), [drawn(4, seed=step) for step in range(1, 5)]
    for gradient in gradients:
        gradient = gradient + DECAY * theta
        velocity = 0.8 * velocity + gradient
        theta = theta - RATE * (gradient + 0.8 * velocity if nesterov else velocity)
    torch.testing.assert_close(ours("sgd", start, gradients, {"momentum": 0.8, "nesterov": nesterov}), theta)


def test_adafactor_is_the_papers_update() -> None:
    """Algorithm 4, with the rate given from outside."""
    theta, rows, columns = drawn(4, 6), torch.zeros(4), torch.zeros(6)
    start, gradients = theta.clone(), [drawn(4, 6, seed=step) for step in range(1, 6)]
    for step, gradient in enumerate(gradients, start=1):
        beta2 = 1 - step**-0.8
        square = gradient**2 + 1e-30
        rows = beta2 * rows + (1 - beta2) * square.mean(dim=1)
        columns = beta2 * columns + (1 - beta2) * square.mean(dim=0)
        update = gradient / (torch.outer(rows, columns) / rows.mean()).sqrt()
        update = update / max(1.0, float(update.pow(2).mean().sqrt()) / 0.7)
        theta = theta - RATE * DECAY * theta - RATE * update
    torch.testing.assert_close(ours("adafactor", start, gradients, {"clip_threshold": 0.7}), theta)


def test_adafactor_can_scale_by_the_weights() -> None:
    start, gradients = 3 * torch.ones(4, 6), [drawn(4, 6, seed=1)]
    plain, scaled = (ours("adafactor", start, gradients, {"scale_parameter": on}) for on in (False, True))
    # one step: the root mean square of the weights is 3, and multiplies the rate, the decay's too
    torch.testing.assert_close(start - scaled, 3 * (start - plain))


def test_adamw8bit_is_near_adamw_and_small_parameters_are_equal() -> None:
    start, gradients = drawn(64, 128), [drawn(64, 128, seed=step) for step in range(1, 9)]
    exact = adamw(start, gradients)
    eight = ours("adamw8bit", start, gradients)
    assert not torch.equal(eight, exact)
    assert (eight - exact).norm() < 0.05 * (exact - start).norm()
    torch.testing.assert_close(ours("adamw8bit", start, gradients, {"min_8bit_size": 10_000}), exact)


def test_paging_needs_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="only CUDA pages"):
        optimizer_of(training_of("adamw8bit", {"paged": True}), [nn.Parameter(torch.ones(2))])


# galore


def rows_apart(count: int, width: int) -> list[Tensor]:
    """Gradients whose rows are orthogonal and of falling length: their left singular vectors are the axes."""
    basis = torch.linalg.qr(drawn(width, count))[0].T
    scales = torch.arange(count, 0, -1, dtype=torch.float32)[:, None]
    return [(1 + 0.1 * step) * scales * basis for step in range(6)]


def test_galore_of_full_rank_is_adam_where_the_axes_are_singular() -> None:
    """With P the axes (and signs, to which Adam is blind), P N is Adam's own direction."""
    start, gradients = drawn(4, 7), rows_apart(4, 7)
    full = {"rank": 4, "scale": 1.0, "update_proj_gap": 2}
    torch.testing.assert_close(ours("galore", start, gradients, full), adamw(start, gradients), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6)])
def test_galore_is_adam_in_the_subspace(shape: tuple[int, int]) -> None:
    """P from the singular value decomposition of the first gradient; W = W0 + scale P (Adam's path of P^T G from zero)."""
    rank, scale = 3, 0.25
    start, gradients = drawn(*shape), [drawn(*shape, seed=step) for step in range(1, 6)]
    tall = shape[0] > shape[1]
    flat = [gradient.T if tall else gradient for gradient in gradients]
    projection = torch.linalg.svd(flat[0], full_matrices=False).U[:, :rank]
    path = adamw(torch.zeros(rank, max(shape)), [projection.T @ gradient for gradient in flat], decay=0.0)
    moved = scale * projection @ path
    found = nn.Parameter(start.clone())
    training = training_of("galore", {"rank": rank, "scale": scale}, weight_decay=0.0)
    optimizer = optimizer_of(training, [found])
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    torch.testing.assert_close(
        follow(optimizer, found, gradients), start + (moved.T if tall else moved), rtol=1e-4, atol=1e-6
    )


def test_galore_looks_for_the_subspace_again() -> None:
    """After update_proj_gap steps the update lies in the span of the new gradient's singular vectors; moments stay."""
    parameter = nn.Parameter(drawn(4, 6))
    optimizer = optimizer_of(training_of("galore", {"rank": 2, "update_proj_gap": 3}), [parameter])
    projections = []
    for step in range(6):
        follow(optimizer, parameter, [drawn(4, 6, seed=step)])
        projections.append(optimizer.state[parameter]["projection"].clone())
    assert [torch.equal(projections[0], other) for other in projections] == [True] * 3 + [False] * 3
    expected = torch.linalg.svd(drawn(4, 6, seed=3)).U[:, :2]
    torch.testing.assert_close(projections[3] @ projections[3].T, expected @ expected.T)
    assert optimizer.state[parameter]["step"] == 6


def test_stacks_of_experts_are_projected_each() -> None:
    start, gradients = drawn(2, 5, 8), [drawn(2, 5, 8, seed=step) for step in range(1, 4)]
    stacked = ours("galore", start, gradients, {"rank": 3})
    for expert in range(2):
        alone = ours("galore", start[expert], [gradient[expert] for gradient in gradients], {"rank": 3})
        torch.testing.assert_close(stacked[expert], alone)


@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_a_matrix_without_a_gradient_at_first_learns_as_if_it_began_then(name: str) -> None:
    """An expert that no token comes to for two steps, with LoRA the first factor in one: not held still by apollo's limit on
    the norm's growth from zero, nor by galore in directions that no gradient chose. Of a stack, the other one goes on."""
    options = {"rank": 3, "update_proj_gap": 50}
    gradients = [drawn(2, 5, 8, seed=step) for step in range(1, 8)]
    for gradient in gradients[:2]:
        gradient[1] = 0.0
    gradients[4][1] = 0.0
    start = drawn(2, 5, 8)
    parameter = nn.Parameter(start.clone())
    optimizer = optimizer_of(training_of(name, options), [parameter])
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    moves = []
    for gradient in gradients:
        before = parameter.detach().clone()
        moves.append((follow(optimizer, parameter, [gradient]) - before).norm(dim=(-2, -1)))
    moved_SE = torch.stack(moves)
    assert (moved_SE[:2, 1] == 0).all()
    assert (moved_SE[[2, 3, 5, 6], 1] > 0.1 * moved_SE[0, 0]).all()
    assert (moved_SE[:, 0] > 0.1 * moved_SE[0, 0]).all()
    if name == "galore":
        for expert, step in ((0, 0), (1, 2)):
            expected = torch.linalg.svd(gradients[step][expert]).U[:, :3]
            found = optimizer.state[parameter]["projection"][expert]
            torch.testing.assert_close(found @ found.T, expected @ expected.T)
        assert "sought" not in optimizer.state[parameter]


# apollo


@pytest.mark.parametrize("scale_type", ["channel", "tensor"])
@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_apollo_is_the_papers_update(shape: tuple[int, int], scale_type: str) -> None:
    """Algorithm 1, with the random matrix taken from ours: scaling |N| / |R|, and Fira's limit on the norm's growth."""
    rank, beta1, beta2, scale = 3, 0.9, 0.999, 4.0
    theta = drawn(*shape)
    start, gradients = theta.clone(), [(1 + step) * drawn(*shape, seed=step) for step in range(1, 6)]
    tall = shape[0] > shape[1]
    training = training_of("apollo", {"rank": rank, "scale_type": scale_type, "scale": scale})
    generator_seed = _apollo_seed(training.seed, min(shape), max(shape))
    drawn_once = torch.randn(rank, min(shape), generator=torch.Generator().manual_seed(generator_seed)) / rank**0.5
    mean = square = torch.zeros(rank, max(shape))
    before = None
    for step, gradient in enumerate(gradients, start=1):
        flat = gradient.T if tall else gradient
        low = drawn_once @ flat
        mean = beta1 * mean + (1 - beta1) * low
        square = beta2 * square + (1 - beta2) * low**2
        normal = mean / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + 1e-8)
        if scale_type == "channel":
            update = flat * (normal.norm(dim=0) / low.norm(dim=0)) * math.sqrt(scale)
        else:
            update = flat * (normal.norm() / low.norm()) * math.sqrt(scale)
        if before is not None and update.norm() > 1.01 * before:
            update = update * 1.01 * before / update.norm()
        before = update.norm()
        theta = (1 - RATE * DECAY) * theta - RATE * (update.T if tall else update)
    parameter = nn.Parameter(start.clone())
    torch.testing.assert_close(follow(optimizer_of(training, [parameter]), parameter, gradients), theta)


def _apollo_seed(seed: int, rows: int, columns: int) -> int:
    from luthier.foundation.seeding import derive_seed

    return derive_seed(seed, "apollo", rows, columns, 0)


def test_apollos_scaling_is_near_adams() -> None:
    """Section 4 of the paper: a column's size is about that of Adam's direction, times sqrt(rank / m)."""
    rows, rank = 64, 32
    gradients = [drawn(rows, 100, seed=step) * torch.logspace(-3, 3, 100) for step in range(5)]
    start, one = torch.zeros(rows, 100), {"rank": rank, "norm_growth": 1e9}
    paths = (adamw(start, gradients[:4], decay=0.0), adamw(start, gradients, decay=0.0))
    training = training_of("apollo", one)
    parameter = nn.Parameter(start.clone())
    optimizer = optimizer_of(training, [parameter])
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    own = [follow(optimizer, parameter, gradients[:4]), follow(optimizer, parameter, gradients[4:])]
    ratio = (own[1] - own[0]).norm(dim=0) / (paths[1] - paths[0]).norm(dim=0)
    assert float(ratio.mean()) == pytest.approx((rank / rows) ** 0.5, rel=0.05)
    assert float(ratio.std()) < 0.15  # the sizes themselves range over six decades


# muon


def test_newton_schulz_makes_the_singular_values_alike() -> None:
    matrix = drawn(12, 20)
    found = muon.newton_schulz(matrix, 5, "float32")
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    # the polynomial is odd, so it acts on the singular values alone: the vectors are those of the matrix
    diagonal = left.T @ found @ right.T
    torch.testing.assert_close(diagonal, torch.diag(diagonal.diagonal()), rtol=1e-4, atol=1e-4)
    x = torch.linalg.svdvals(matrix) / matrix.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    torch.testing.assert_close(diagonal.diagonal(), x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs(shape: tuple[int, int], nesterov: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, which torch's always computes in; in float32 they differ by bfloat16's rounding."""
    start, gradients = drawn(*shape), [drawn(*shape, seed=step) for step in range(1, 6)]
    theirs = nn.Parameter(start.clone())
    peer = torch.optim.Muon([theirs], lr=RATE, weight_decay=DECAY, nesterov=nesterov, adjust_lr_fn="match_rms_adamw")
    expected = follow(peer, theirs, gradients)
    for precisions, tolerance in ((frozenset({"bfloat16"}), 1e-6), (frozenset(), 0.02)):
        monkeypatch.setattr(muon, "fast_precisions", lambda device, found=precisions: found)
        found = ours("muon", start, gradients, {"nesterov": nesterov})
        assert (found - expected).norm() <= tolerance * (expected - start).norm()


@pytest.mark.parametrize("shape", [(2, 6, 10), (3, 10, 6)])
def test_muon_makes_each_expert_orthogonal_by_itself(shape: tuple[int, ...]) -> None:
    start, gradients = drawn(*shape), [drawn(*shape, seed=step) for step in range(1, 4)]
    stacked = ours("muon", start, gradients)
    for expert in range(shape[0]):
        alone = ours("muon", start[expert], [gradient[expert] for gradient in gradients])
        torch.testing.assert_close(stacked[expert], alone)


def test_a_single_row_beside_muon_is_adamws() -> None:
    """Made orthogonal it would only be scaled, and a depthwise convolution's kernels with it."""
    for shape in ((1, 8), (8, 1), (6, 1, 4)):
        start, gradients = drawn(*shape), [drawn(*shape, seed=step) for step in range(1, 4)]
        torch.testing.assert_close(ours("muon", start, gradients), adamw(start, gradients))


def test_what_is_no_hidden_matrix_is_trained_by_adamw() -> None:
    """Embeddings, the head and norms beside muon, galore and apollo."""
    for name in ("muon", "galore", "apollo"):
        run = TinyRun(config_of(name, learning_rate=RATE, weight_decay=DECAY))
        before = run.weights()
        gradients: list[dict[str, Tensor]] = []
        for _ in range(3):
            run.gradients()
            gradients.append({n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None})
            run.optimizer.step()
            run.optimizer.zero_grad()
        after = run.weights()
        for part, decay in (("embed_tokens.weight", DECAY), ("lm_head.weight", DECAY), ("model.norm.weight", 0.0)):
            (full,) = [n for n in before if n.endswith(part)]
            expected = adamw(before[full], [step[full] for step in gradients], decay=decay)
            torch.testing.assert_close(after[full], expected, msg=f"{name}: {full}")


# badam


def test_badams_blocks() -> None:
    names = [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.self_attn.q_proj.weight", "matrix"),
        ("model.layers.0.input_layernorm.weight", "vector"),
        ("model.layers.1.mlp.up_proj.weight", "matrix"),
        ("model.norm.weight", "vector"),
        ("lm_head.weight", "embedding"),
    ]
    assert badam.blocks(names) == {
        "model.embed_tokens": ["model.embed_tokens.weight"],
        "model.layers.0": ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight"],
        "model.layers.1": ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"],
        "lm_head": ["lm_head.weight"],
    }


def block_of(name: str) -> str:
    return next(
        part for part in ("embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "lm_head") if part in name
    ).replace("norm", "layers.2")


@pytest.mark.parametrize(
    ("mode", "order"),
    [
        ("ascending", ["embed_tokens", "layers.0", "layers.1", "layers.2", "lm_head", "embed_tokens"]),
        ("descending", ["lm_head", "layers.2", "layers.1", "layers.0", "embed_tokens", "lm_head"]),
    ],
)
def test_badam_moves_one_block_after_the_other_as_adamw_would(mode: str, order: list[str]) -> None:
    """In each turn: AdamW from zero moments on the block, everything else with the same bits, moments for it alone."""
    options = {"switch_block_every": 2, "switch_mode": mode}
    run = TinyRun(config_of("badam", optim=options, learning_rate=RATE, weight_decay=DECAY))
    for expected in order:
        before, gradients = run.weights(), []
        for step in range(2):
            run.gradients()
            gradients.append({n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None})
            run.optimizer.step()
            run.optimizer.zero_grad()
            kept = {n for n, p in run.model.named_parameters() if run.optimizer.state.get(p)}
            # the last step of a turn drops the moments
            assert {block_of(n) for n in kept} == ({expected} if step == 0 else set())
        after = run.weights()
        moved = {n for n in before if not torch.equal(before[n], after[n])}
        assert {block_of(n) for n in moved} == {expected}
        assert gradients[0].keys() == moved
        for n in moved:
            alone = adamw(before[n], [step[n] for step in gradients], decay=0.0 if "norm" in n else DECAY)
            torch.testing.assert_close(after[n], alone, msg=n)


def test_badams_rounds_are_drawn_anew() -> None:
    run = TinyRun(config_of("badam", optim={"switch_block_every": 1}))
    seen = []
    for _ in range(15):
        seen.append(run.optimizer.active)  # type: ignore[attr-defined]
        run.steps(1)
    rounds = [seen[start : start + 5] for start in (0, 5, 10)]
    assert all(sorted(turn) == [0, 1, 2, 3, 4] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1


def test_badam_says_which_blocks_a_short_run_leaves_out() -> None:
    run = TinyRun(config_of("badam", optim={"switch_block_every": 50}))
    (said,) = check_optimizer(run.config, run.model, lambda name: 1.0, total_steps=120)
    assert "5 blocks of 50 steps need 250 steps for a round, the run has 120: 2 blocks never learn" in said
    assert "switch_block_every to 24" in said
    assert check_optimizer(run.config, run.model, lambda name: 1.0, total_steps=250) == []


# schedule_free


def test_schedule_free_is_the_papers_update() -> None:
    """Algorithm 1 with x, y and z written out: c = 1 / t with a constant rate; decay at y."""
    beta1, beta2 = 0.9, 0.999
    start, gradients = drawn(3, 4), [drawn(3, 4, seed=step) for step in range(1, 8)]
    x, z, square = start.clone(), start.clone(), torch.zeros(3, 4)
    parameter = nn.Parameter(start.clone())
    optimizer = optimizer_of(training_of("schedule_free"), [parameter])
    for step, gradient in enumerate(gradients, start=1):
        y = (1 - beta1) * z + beta1 * x
        to_training(optimizer)
        torch.testing.assert_close(parameter.detach(), y)
        square = beta2 * square + (1 - beta2) * gradient**2
        direction = gradient / ((square / (1 - beta2**step)).sqrt() + 1e-8) + DECAY * y
        z = z - RATE * direction
        x = (1 - 1 / step) * x + z / step
        follow(optimizer, parameter, [gradient])
        to_evaluation(optimizer)
        torch.testing.assert_close(parameter.detach(), x, rtol=1e-5, atol=1e-6)


def test_looking_at_schedule_frees_average_changes_nothing() -> None:
    gradients = [drawn(30, 4, seed=step) for step in range(9)]
    ends = []
    for looks in (False, True):
        parameter = nn.Parameter(drawn(30, 4))
        optimizer = optimizer_of(training_of("schedule_free"), [parameter])
        for gradient in gradients:
            to_training(optimizer)
            follow(optimizer, parameter, [gradient])
            if looks:
                to_evaluation(optimizer)
        to_evaluation(optimizer)
        ends.append(parameter.detach().clone())
    assert torch.equal(*ends)


# parameter groups


@pytest.mark.parametrize(
    ("method", "vectors", "matrices"),
    [
        ("full", ["input_layernorm.weight", "model.norm.weight"], ["q_proj.weight", "down_proj.weight"]),
        ("ia3", ["ia3_l"], []),
        ("lora", [], ["lora_A.default.weight", "lora_B.default.weight"]),
        ("adapter", ["bottleneck.down.bias"], ["bottleneck.down.weight"]),
    ],
)
def test_vectors_do_not_decay(method: str, vectors: list[str], matrices: list[str]) -> None:
    """IA3's are kept as a row or a column: they scale, start at one, and decay would switch layers off."""
    run = TinyRun(config_of("adamw", weight_decay=0.1), method)
    decays = {n: g["weight_decay"] for g in run.optimizer.param_groups for n in g["param_names"]}
    for names, expected in ((vectors, 0.0), (matrices, 0.1)):
        for part in names:
            assert {decay for n, decay in decays.items() if part in n} == {expected}, part


def test_what_stands_at_a_models_ends_is_no_hidden_matrix() -> None:
    """LoRA's factors beside the embedding and the head, rows for new tokens, a head over classes: most of an embedding's
    gradient is zero, and made orthogonal the rest would be moved as far as if all of it were there."""
    lora, new = METHODS.load("lora"), Apply(seed=1, new_token_ids=(298, 299))
    options = lora.Options(target_modules=["embed_tokens", "q_proj", "lm_head"])
    words = parameter_roles(lora.build(options).apply(tiny_model("llama"), Apply(seed=1)))
    for part, role in (("embed_tokens", "embedding"), ("lm_head", "embedding"), ("q_proj", "matrix")):
        own = {name: found for name, found in words.items() if part in name}
        assert len(own) >= 2 and set(own.values()) == {role}, own
    rows = parameter_roles(lora.build(lora.Options()).apply(tiny_model("llama"), new))
    assert {role for name, role in rows.items() if "trainable_tokens" in name} == {"embedding"}
    head = SequenceHead("single_label_classification", ("bad", "good", "plain"))
    config = tiny_model("llama").config
    config.pad_token_id = 0
    classifier = LlamaForSequenceClassification(with_head(config, head))
    classes = parameter_roles(lora.build(lora.Options()).apply(classifier, Apply(seed=1, head=head)))
    assert [role for name, role in classes.items() if "score" in name] == ["embedding"]
    assert {role for name, role in classes.items() if "score" not in name} == {"matrix"}


# what does not fit


@pytest.mark.parametrize(
    ("name", "method", "said"),
    [
        ("galore", "lora", "rank is 40, and the shorter side of no trained matrix exceeds 8"),
        ("galore", "norm_tuning", "no matrix is trained"),
        ("apollo", "lora", "training.optim apollo has nothing to project"),
        ("muon", "norm_tuning", "trains no matrix of a hidden layer"),
    ],
)
def test_a_method_that_trains_nothing_of_its_kind(name: str, method: str, said: str) -> None:
    options = {"rank": 40} if name in ("galore", "apollo") else {}
    config = load({"model": "m", "data": {"train": "a"}, "training": {"optim": {"name": name, **options}}})
    run = TinyRun(config_of("adamw"), method)
    with pytest.raises(TrainingError, match=said):
        check_optimizer(config, run.model, lambda parameter: 1.0, total_steps=10)


def test_schedule_free_needs_a_first_moment() -> None:
    run = TinyRun(config_of("adamw"))
    with pytest.raises(TrainingError, match="adam_beta1 is 0, with which schedule_free has no average"):
        check_optimizer(config_of("schedule_free", adam_beta1=0.0), run.model, lambda parameter: 1.0, total_steps=10)


@pytest.mark.parametrize("name", METHODS.names())
def test_a_decay_of_nothing_is_refused(name: str) -> None:
    """Of the methods, those that train no matrix; a head over classes beside them would decay."""
    module = METHODS.load(name)
    kind = "qwen2" if name == "bitfit" else "llama"  # its biases
    model = module.build(module.Options(name=name)).apply(tiny_model(kind), Apply(seed=1, tokenizer=tiny_tokenizer()))
    raw = {"model": "m", "data": {"train": "a"}, "method": name, "training": {"weight_decay": 0.1}}
    idle = name in ("bitfit", "ia3", "norm_tuning", "vera")
    with pytest.raises(TrainingError, match=f"nothing would decay: what method {name}") if idle else nullcontext():
        check_optimizer(load(raw), model, lambda parameter: 1.0, total_steps=10)
    raw["training"] = {}
    check_optimizer(load(raw), model, lambda parameter: 1.0, total_steps=10)


def test_a_single_block() -> None:
    run = TinyRun(config_of("adamw"))
    for name, parameter in run.model.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    with pytest.raises(TrainingError, match=r"one block to train \(model.layers.1\)"):
        check_optimizer(config_of("badam"), run.model, lambda parameter: 1.0, total_steps=10)


def test_directions_of_galore_are_the_first_ranks() -> None:
    """Without a process group nothing is asked of other ranks."""
    projection = drawn(4, 2)
    assert torch.equal(galore.same_on_all_ranks(projection), projection)


def test_galore_is_tried_on_the_cpu_where_ranks_speak_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """A low rank projects the small matrix too, on which the optimizer is tried before there are weights; nccl's group
    refuses what stands on the CPU."""

    def broadcast(tensor: torch.Tensor, src: int) -> None:
        raise RuntimeError("No backend type associated with device type cpu")

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    make_optimizer(config_of("galore"), tiny_model("llama"))
