"""The classic MIL sets: the network's equations and gradient against torch, the protocol, bad files, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run_command

from wsi_dino.errors import ConfigError
from wsi_dino.mil.classic_bench import (
    PUBLISHED,
    ClassicProtocol,
    deal_folds,
    fold_accuracy,
    read_classic_set,
    run_classic_bench,
    standard_error,
)
from wsi_dino.mil.classic_network import WIDTHS, ClassicNetwork, ClassicSpec


def _in_torch(network: ClassicNetwork, bag: np.ndarray, dropout: list[np.ndarray | None]) -> tuple[torch.Tensor, dict]:
    """The equations of the paper in float64, weights as leaves."""
    names = [f"{part}_{layer}" for layer in range(3) for part in ("weight", "bias")]
    names += ["attention_v", "attention_bias_v", "attention_w", "head", "head_bias"]
    names += ["attention_u", "attention_bias_u"] if network.spec.gated else []
    leaves = {name: torch.tensor(network.weights[name], dtype=torch.float64, requires_grad=True) for name in names}
    hidden = torch.tensor(bag, dtype=torch.float64)
    for layer in range(3):
        hidden = torch.relu(hidden @ leaves[f"weight_{layer}"] + leaves[f"bias_{layer}"])
        if dropout[layer] is not None:
            hidden = hidden * torch.tensor(dropout[layer], dtype=torch.float64)
    gate = torch.tanh(hidden @ leaves["attention_v"] + leaves["attention_bias_v"])
    if network.spec.gated:
        gate = gate * torch.sigmoid(hidden @ leaves["attention_u"] + leaves["attention_bias_u"])
    alpha = torch.softmax(gate @ leaves["attention_w"], 0)
    return (alpha @ hidden) @ leaves["head"] + leaves["head_bias"][0], leaves


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("label", [0, 1])
def test_forward_and_gradient_are_those_of_the_equations(gated: bool, label: int) -> None:
    random = np.random.default_rng(3)
    network = ClassicNetwork(11, ClassicSpec(gated=gated), random, np.float64)
    bag = random.normal(size=(6, 11))
    dropout = [(random.random((6, width)) > 0.4) / 0.6 for width in WIDTHS]
    plain, _ = _in_torch(network, bag, [None] * 3)
    assert network.logit(bag) == pytest.approx(plain.item(), abs=1e-12)
    assert network.attention(bag).sum() == pytest.approx(1)
    logit, leaves = _in_torch(network, bag, dropout)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, torch.tensor(float(label), dtype=torch.float64))
    loss.backward()
    assert network.backward(bag, label, dropout) == pytest.approx(loss.item(), abs=1e-12)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(network.gradient[name], leaf.grad.numpy(), atol=1e-12)


def test_a_step_is_that_of_torchs_sgd() -> None:
    spec = ClassicSpec(gated=True, dropout=0, epochs=3, learning_rate=0.01)
    network = ClassicNetwork(5, spec, np.random.default_rng(0), np.float64)
    bag = np.random.default_rng(1).normal(size=(4, 5))
    _, leaves = _in_torch(network, bag, [None] * 3)
    optimizer = torch.optim.SGD(leaves.values(), lr=0.01, momentum=spec.momentum, weight_decay=spec.weight_decay)
    network.fit([bag], np.array([1]))
    for _ in range(3):
        optimizer.zero_grad()
        hidden = torch.tensor(bag)
        for layer in range(3):
            hidden = torch.relu(hidden @ leaves[f"weight_{layer}"] + leaves[f"bias_{layer}"])
        gate = torch.tanh(hidden @ leaves["attention_v"] + leaves["attention_bias_v"])
        gate = gate * torch.sigmoid(hidden @ leaves["attention_u"] + leaves["attention_bias_u"])
        logit = (torch.softmax(gate @ leaves["attention_w"], 0) @ hidden) @ leaves["head"] + leaves["head_bias"][0]
        torch.nn.functional.softplus(-logit).backward()
        optimizer.step()
    for name, leaf in leaves.items():
        np.testing.assert_allclose(network.weights[name], leaf.detach().numpy(), atol=1e-12)


def _write_set(path: Path, n_bags: int = 24, tells: bool = True, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    labels = np.arange(n_bags) % 2
    sizes = random.integers(2, 7, n_bags)
    owner = np.repeat(np.arange(n_bags) * 3 + 5, sizes)  # ids with gaps
    instances = random.normal(size=(len(owner), 6)) * 50 + 300
    first = np.cumsum(sizes) - sizes
    if tells:
        instances[first[labels == 1], 2] += 400
    np.savez(path, X=instances.astype(np.float32), bag=owner, bag_label=labels.astype(np.uint8))


def test_folds_test_each_bag_once_a_repeat_and_keep_the_classes() -> None:
    labels = np.arange(40) % 2
    protocol = ClassicProtocol(repeats=2, folds=5)
    tested: dict[int, list[int]] = {0: [], 1: []}
    for repeat, _, train, test in deal_folds(labels, protocol):
        assert not set(train) & set(test)
        assert labels[test].mean() == 0.5
        tested[repeat] += test.tolist()
    assert sorted(tested[0]) == sorted(tested[1]) == list(range(40))
    assert tested[0] != tested[1]


def test_standardising_uses_training_bags_alone(tmp_path: Path) -> None:
    _write_set(tmp_path / "a.npz")
    bags = read_classic_set(tmp_path / "a.npz")
    train = np.arange(10)
    scaled = np.concatenate([bags.standardised(train)[index] for index in train])
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-5)
    assert abs(np.concatenate(bags.standardised(train)[10:]).mean(0)).max() > 1e-3


def test_what_is_there_is_learnt_and_noise_is_not(tmp_path: Path) -> None:
    _write_set(tmp_path / "told.npz", 60)
    _write_set(tmp_path / "noise.npz", 60, tells=False)
    spec = ClassicSpec(epochs=40, learning_rate=2e-3)
    protocol = ClassicProtocol(repeats=1, folds=3, spec=spec)
    paths = [tmp_path / "told.npz", tmp_path / "noise.npz"]
    results = run_classic_bench(paths, protocol, workers=2)
    for model in ("abmil", "gated-abmil"):
        assert results["told"][model]["mean"] > 0.9
        assert results["noise"][model]["mean"] < 0.75
        assert results["told"][model]["published"] is None
    # neither order nor processes matter
    alone = fold_accuracy(read_classic_set(paths[1]), "abmil", protocol, 0, 1)
    assert results["noise"]["abmil"]["folds"][0][1] == alone


def test_the_standard_error_does_not_shrink_with_repeats() -> None:
    once = np.random.default_rng(0).normal(size=(1, 10))
    assert standard_error(once) == pytest.approx(once.std(ddof=1) / np.sqrt(10))
    assert standard_error(np.repeat(once, 5, 0)) == pytest.approx(standard_error(once))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bag": None}, "bag is missing"),
        ({"bag_label": np.array([0, 1])}, "bag_label must be"),
        ({"bag_label": np.full(24, 2)}, "must hold 0 and 1"),
        ({"X": np.zeros(4)}, "expected X"),
        ({"X": np.full((1, 6), np.nan)}, "not finite"),
        ({"X": np.array([{"a": 1}], dtype=object)}, "broken or no .npz"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "a.npz"
    _write_set(path)
    arrays = dict(np.load(path)) | change
    if change.get("X") is not None and "finite" in message:
        arrays["X"] = np.repeat(change["X"], len(arrays["bag"]), 0)
    np.savez(path, allow_pickle=True, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ConfigError, match=message) as caught:
        read_classic_set(path)
    assert str(path) in str(caught.value)


def test_command_prints_one_object_and_a_table(tmp_path: Path) -> None:
    _write_set(tmp_path / "musk1.npz")
    _write_set(tmp_path / "own.npz")
    small = ("--repeats", 1, "--folds", 3, "--epochs", 2, "--workers", 1)
    ran = run_command(tmp_path, "bench", "mil-classic", tmp_path, *small, "--json")
    assert ran.code == 0, ran.stderr
    assert set(ran.json["sets"]) == {"musk1", "own"}
    for name in ("musk1", "own"):
        for model in ("abmil", "gated-abmil"):
            result = ran.json["sets"][name][model]
            assert 0 <= result["mean"] <= 1
            assert result["se"] >= 0
    published = ran.json["sets"]["musk1"]["abmil"]["published"]
    assert (published["mean"], published["se"]) == PUBLISHED["musk1"]["abmil"]
    ran = run_command(tmp_path, "bench", "mil-classic", tmp_path, *small, "--set", "own")
    assert "own" in ran.stdout
    assert "musk1" not in ran.stdout


def test_command_says_what_is_missing(tmp_path: Path) -> None:
    assert run_command(tmp_path, "bench", "mil-classic", tmp_path / "nowhere").code == 2
    ran = run_command(tmp_path, "bench", "mil-classic", tmp_path)
    assert (ran.code, "no .npz" in ran.stderr) == (2, True)
    _write_set(tmp_path / "a.npz", 12)
    assert run_command(tmp_path, "bench", "mil-classic", tmp_path, "--set", "b").code == 2
    ran = run_command(tmp_path, "bench", "mil-classic", tmp_path, "--folds", 10)
    assert (ran.code, "fewer than" in ran.stderr) == (2, True)


@pytest.mark.slow
def test_published_accuracy_is_reached_on_musk1(shared_data: Path) -> None:
    path = shared_data / "mil_classic" / "musk1.npz"
    results = run_classic_bench([path], ClassicProtocol(repeats=1), workers=2)
    for model in ("abmil", "gated-abmil"):
        assert results["musk1"][model]["combined_se_off"] < 2, json.dumps(results["musk1"][model])
