"""The MIL models against independent computations: torchmil, scikit-learn, numpy from the equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from toy_bags import make_bags

from wsi_dino.mil.autograd_training import AutogradTrainer
from wsi_dino.mil.lanes import open_lanes
from wsi_dino.mil.layers.nystrom_attention import NystromAttention, iterative_pinv
from wsi_dino.mil.linear_fit import fit_linear
from wsi_dino.mil.mil_model import MilModel
from wsi_dino.mil.models import get_model
from wsi_dino.mil.models.clam_sb import smooth_svm
from wsi_dino.mil.objective import CoxPartialLikelihood, CrossEntropy
from wsi_dino.mil.packed_training import PackedTrainer
from wsi_dino.mil.training import TrainingSpec, train_fold

CPU = torch.device("cpu")


def _build(name: str, embed_dim: int, n_outputs: int, **options: Any) -> MilModel:
    record = get_model(name)
    torch.manual_seed(0)
    return record.build(embed_dim, n_outputs, record.hyperparameters(**options)).double().eval()


def _bag(n: int, embed_dim: int, seed: int = 1) -> Tensor:
    return torch.randn(n, embed_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _mask(bag: Tensor) -> Tensor:
    return torch.ones(1, len(bag), dtype=torch.bool)


@pytest.mark.parametrize(("side", "n_landmarks", "n"), [(7, 10, 49), (7, 25, 43), (3, 5, 9)])
def test_transmil_equals_torchmil_on_shared_weights(side: int, n_landmarks: int, n: int) -> None:
    """Where the number of tokens is a multiple of the landmarks: there alone theirs pads nothing.

    Theirs has no ReLU on the tokens (here they are positive), no projection after attention (ours is the identity)
    and no convolution of the values; and starts the pseudo-inverse from one scale for all heads, so there is one.
    """
    reference = pytest.importorskip("torchmil.models.transmil")
    theirs = reference.TransMIL((6,), att_dim=16, n_heads=1, n_landmarks=n_landmarks).double().eval()
    ours = _build("transmil", 6, 1, hidden_dim=16, n_heads=1, n_landmarks=n_landmarks, kernel=0)
    for layer, norm, attention in zip(
        theirs.layers, (ours.first_norm, ours.second_norm), (ours.first_attention, ours.second_attention), strict=True
    ):
        norm.load_state_dict(layer.norm1.state_dict())
        attention.to_qkv.load_state_dict(layer.att_module.qkv_nn.state_dict())
        torch.nn.init.eye_(attention.to_out.weight)
        torch.nn.init.zeros_(attention.to_out.bias)
    for mine, other in zip(ours.position.convolutions, ("proj", "proj1", "proj2"), strict=True):
        mine.load_state_dict(getattr(theirs.pos_layer, other).state_dict())
    ours.class_token.data = theirs.cls_token.data[0]
    ours.last_norm.load_state_dict(theirs.norm.state_dict())
    ours.head.load_state_dict(theirs.classifier.state_dict())
    theirs.fc1.weight.data.abs_()
    theirs.fc1.bias.data.abs_()
    ours.projection.load_state_dict(theirs.fc1.state_dict())
    bag = _bag(n, 6).abs()
    assert (side * side + 1) % n_landmarks == 0
    with torch.no_grad():
        wanted, attention = theirs(bag[None], return_att=True)
        seen = ours(bag[None], _mask(bag))
    torch.testing.assert_close(seen.outputs[0], wanted, rtol=1e-9, atol=1e-9)
    if n == side * side:  # with repeated tiles theirs leaves out the attention of the copies
        torch.testing.assert_close(seen.attention[0].exp(), attention[0].clamp_min(1e-12), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("nonlinear", [True, False])
def test_dsmil_equals_torchmil_on_shared_weights(nonlinear: bool) -> None:
    reference = pytest.importorskip("torchmil.models.dsmil")
    theirs = reference.DSMIL((6,), att_dim=8, nonlinear_q=nonlinear).double().eval()
    ours = _build("dsmil", 6, 1, query_dim=8, nonlinear=nonlinear)
    ours.query.load_state_dict(theirs.q_nn.state_dict())
    ours.tile_head.load_state_dict(theirs.inst_classifier.state_dict())
    ours.head.load_state_dict(theirs.bag_classifier.state_dict())
    bag = _bag(23, 6)
    with torch.no_grad():
        of_slide, attention = theirs(bag[None], return_att=True)
        wanted = theirs.predict(bag[None])
        seen = ours(bag[None], _mask(bag))
        streams = ours.train()(bag[None], _mask(bag)).streams
    torch.testing.assert_close(seen.outputs[0, 0], wanted[0])
    torch.testing.assert_close(torch.softmax(seen.attention, 1)[0], attention.reshape(-1))
    torch.testing.assert_close(streams[1][1][0, 0], of_slide[0])
    assert [share for share, _ in streams] == [0.5, 0.5]


def test_dsmil_of_several_classes_equals_its_equations() -> None:
    model, bag = _build("dsmil", 6, 3, query_dim=8, nonlinear=False), _bag(11, 6)
    w = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    x = bag.numpy()
    s = x @ w["tile_head.weight"].T + w["tile_head.bias"]
    q = x @ w["query.weight"].T + w["query.bias"]
    embedded = []
    for c in range(3):
        raw = q @ q[s[:, c].argmax()] / np.sqrt(8)
        embedded.append(np.exp(raw) / np.exp(raw).sum() @ x)
    outputs = (s.max(0) + w["head.weight"] @ np.concatenate(embedded) + w["head.bias"]) / 2
    np.testing.assert_allclose(model(bag[None], _mask(bag)).outputs[0].detach().numpy(), outputs, rtol=1e-10)


def test_attention_of_a_short_sequence_is_exact_and_nystrom_is_near_it() -> None:
    torch.manual_seed(0)
    exact = NystromAttention(32, n_heads=4, n_landmarks=500, kernel=0).double().eval()
    tokens = _bag(300, 32) * 0.5
    q, k, v = exact.to_qkv(tokens).view(300, 3, 4, 8).permute(1, 2, 0, 3)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(300, 32)
    got, first = exact(tokens)
    torch.testing.assert_close(got, exact.to_out(wanted))
    assert float(first.detach().sum()) == pytest.approx(1)
    errors = []
    for n_landmarks in (8, 64, 290):
        near = NystromAttention(32, n_heads=4, n_landmarks=n_landmarks, n_iterations=20, kernel=0).double().eval()
        near.load_state_dict(exact.state_dict())
        errors.append(float((near(tokens)[0] - got).detach().norm() / got.detach().norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_iterative_pseudo_inverse_comes_to_that_of_torch() -> None:
    matrices = torch.softmax(3 * torch.randn(2, 12, 12, dtype=torch.float64, generator=torch.manual_seed(0)), -1)
    torch.testing.assert_close(iterative_pinv(matrices, 40), torch.linalg.pinv(matrices), rtol=1e-6, atol=1e-8)


def test_smooth_svm_is_the_soft_maximum_of_margins() -> None:
    scores, labels = torch.tensor([[2.0, 0.5], [-1.0, 0.2]], dtype=torch.float64), torch.tensor([0, 0])
    wanted = np.mean([np.log(1 + np.exp(1 + 0.5 - 2.0)), np.log(1 + np.exp(1 + 0.2 + 1.0))])
    assert float(smooth_svm(scores, labels)) == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["svm", "ce"])
@pytest.mark.parametrize("subtyping", [True, False])
def test_clustering_loss_equals_the_paper_by_hand(kind: str, subtyping: bool) -> None:
    model = _build("clam-sb", 6, 3, hidden_dim=10, attention_dim=4, dropout=0, k_sample=2, instance_loss=kind,
                   subtyping=subtyping).train()  # fmt: skip
    bag = _bag(9, 6)
    seen = model(bag[None], _mask(bag))
    assert [share for share, _ in seen.streams] == [0.7]
    w = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    hidden = np.maximum(bag.numpy() @ w["projection.weight"].T + w["projection.bias"], 0)
    gate = np.tanh(hidden @ w["attention.tanh_branch.weight"].T + w["attention.tanh_branch.bias"])
    gate /= 1 + np.exp(-hidden @ w["attention.sigmoid_branch.weight"].T - w["attention.sigmoid_branch.bias"])
    raw = gate @ w["attention.to_score.weight"][0] + w["attention.to_score.bias"]
    alpha = np.exp(raw) / np.exp(raw).sum()
    np.testing.assert_allclose(
        seen.outputs[0].detach(), w["head.weight"] @ (alpha @ hidden) + w["head.bias"], rtol=1e-10
    )
    order = np.argsort(alpha)
    lowest, highest = order[:2], order[-2:]

    def loss(cluster: int, tile: int, label: int) -> float:
        s = w[f"clusters.{cluster}.weight"] @ hidden[tile] + w[f"clusters.{cluster}.bias"]
        margin = 1.0 if kind == "svm" else 0.0
        return float(np.log(1 + np.exp(margin + s[1 - label] - s[label])))

    own = np.mean([loss(1, tile, 1) for tile in highest] + [loss(1, tile, 0) for tile in lowest])
    others = [np.mean([loss(c, tile, 0) for tile in highest]) for c in (0, 2)] if subtyping else []
    wanted = 0.3 * np.mean([own, *others]) * 0.25
    got = seen.extra_losses[0](torch.tensor([[1.0]]), torch.tensor([0.25]))
    assert float(got) == pytest.approx(wanted)


def test_additive_abmil_says_nothing_by_the_number_of_tiles() -> None:
    model, bag = _build("additive-abmil", 6, 2), _bag(1, 6)
    once, often = (model(each[None], _mask(each)).outputs for each in (bag, bag.repeat(40, 1)))
    torch.testing.assert_close(once, often)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_linear_probe_equals_scikit_learn(n_classes: int) -> None:
    means, labels = _bag(60, 5, 3), np.arange(60) % n_classes
    means[:, 0] += torch.from_numpy(labels)
    counts = np.bincount(labels)
    weights = torch.from_numpy((len(labels) / (n_classes * counts))[labels])
    objective, truth = CrossEntropy(class_weights=(1.0,) * n_classes), torch.from_numpy(labels[:, None])
    found = fit_linear(objective, means, truth, weights / weights.sum(), 0.7, np.zeros((n_classes, 6)))
    c = 0.7 * (2 if n_classes == 2 else 1)
    reference = LogisticRegression(C=c, class_weight="balanced", tol=1e-10, max_iter=5000).fit(means.numpy(), labels)
    outputs = means.numpy() @ found[:, :-1].T + found[:, -1]
    p = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    np.testing.assert_allclose(p, reference.predict_proba(means.numpy()), atol=2e-5)


def test_linear_probe_takes_the_penalty_with_the_lowest_validation_loss() -> None:
    store, cohort = make_bags(80)
    truth = {row.slide_id: (float(row.label),) for row in cohort.rows}
    train, val = cohort.slide_ids[:50], cohort.slide_ids[50:]
    objective = CrossEntropy(class_weights=(1.0, 1.0))
    chosen = train_fold(TrainingSpec(model="linear-mean"), store, truth, train, val, objective)
    losses = [row["val_loss"] for row in chosen.history]
    assert len(losses) == 9
    assert chosen.best_epoch == int(np.argmin(losses))
    c = chosen.history[chosen.best_epoch]["c"]
    scale = float(chosen.model.feature_scale)
    means = np.stack([store.features(s).astype(float).mean(0) / scale for s in cohort.slide_ids])
    labels = np.array([truth[s][0] for s in cohort.slide_ids])
    reference = LogisticRegression(C=2 * c, tol=1e-10, max_iter=5000).fit(means[:50], labels[:50])
    p = reference.predict_proba(means[50:])
    wanted = -np.log(p[np.arange(30), labels[50:].astype(int)]).mean()
    assert losses[chosen.best_epoch] == pytest.approx(wanted, abs=1e-4)


def test_autograd_trains_abmil_as_the_packed_step_does() -> None:
    """Two ways to one result: the gradient by hand over packed bags, and autograd bag by bag."""
    store, cohort = make_bags(40, 3)
    truth = {row.slide_id: (float(row.label),) for row in cohort.rows}
    spec = TrainingSpec(hidden_dim=16, attention_dim=8, dropout=0, epochs=4, learning_rate=3e-3, precision="fp32")
    objective = CrossEntropy.of([int(truth[s][0]) for s in cohort.slide_ids[:30]], 3)
    results = []
    for kind in (PackedTrainer, AutogradTrainer):
        with open_lanes(CPU, 1) as lanes:
            trainer = kind(spec, store, truth, cohort.slide_ids[:30], cohort.slide_ids[30:], objective, CPU, lanes)
            results.append(trainer.run(lambda row: None))
    for one, other in zip(results[0].history, results[1].history, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    for name, value in results[0].model.state_dict().items():
        torch.testing.assert_close(value, results[1].model.state_dict()[name], rtol=1e-2, atol=1e-4, msg=name)


@pytest.mark.parametrize("name", ["dsmil", "mean-pool"])
def test_gradient_of_coupled_bags_is_that_of_the_whole_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cox's loss compares the slides of a step; they are seen one by one all the same."""
    store, cohort = make_bags(12)
    random = np.random.default_rng(0)
    truth = {s: (float(random.integers(1, 6)), float(random.integers(0, 2))) for s in cohort.slide_ids}
    objective = CoxPartialLikelihood(horizon=3.0)
    small = {"hidden_dim": 16, "dropout": 0} if name == "mean-pool" else {"query_dim": 8}
    spec = TrainingSpec(model=name, **small)
    with open_lanes(CPU, 1) as lanes:
        trainer = AutogradTrainer(spec, store, truth, cohort.slide_ids[:8], cohort.slide_ids[8:], objective, CPU, lanes)
        taken: list[Tensor] = []
        monkeypatch.setattr(trainer._optimizer, "step", lambda gradient, *_: taken.append(gradient.clone()))
        batch = list(cohort.slide_ids[:8])
        loss = trainer._step(batch, range(8), 1e-3)
    model, total = trainer._model, torch.zeros(())
    seen = [
        model(torch.from_numpy(store.features(s))[None], torch.ones(1, store.n_tiles[s], dtype=torch.bool))
        for s in batch
    ]
    known = torch.tensor([truth[s] for s in batch]), torch.full((8,), 1 / 8)
    for stream in zip(*(each.learnt_streams for each in seen), strict=True):
        total = total + stream[0][0] * objective.loss(torch.cat([outputs for _, outputs in stream]), *known)
    wanted = torch.cat([slope.reshape(-1) for slope in torch.autograd.grad(total, list(model.parameters()))])
    torch.testing.assert_close(taken[0], wanted, rtol=1e-4, atol=1e-6)
    assert float(loss) == pytest.approx(float(total.detach()), rel=1e-5)
