"""The model against its equations, and the fast training step against autograd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from wsi_dino.mil.abmil import ABMIL, attention_weights
from wsi_dino.mil.adamw import AdamW
from wsi_dino.mil.gradient_sum import GradientSum
from wsi_dino.mil.lanes import open_lanes
from wsi_dino.mil.objective import CrossEntropy
from wsi_dino.mil.packed import (
    GradientBuffer,
    PackedWeights,
    Unit,
    Workspace,
    dropout_mask,
    forward,
    gradient,
    rounded_rows,
)

CPU = torch.device("cpu")
LENGTHS = (5, 1, 9)
TRUTH = torch.tensor([[0.0], [2.0], [1.0]])
BAG_WEIGHTS = torch.tensor([0.2, 0.5, 0.3])


def _model(dropout: float = 0.0, gated: bool = True, relu: bool = False, seed: int = 0) -> ABMIL:
    torch.manual_seed(seed)
    model = ABMIL(20, 3, hidden_dim=32, attention_dim=16, dropout=dropout, gated=gated, relu=relu)
    model.attention_w.weight.data *= 5  # so that attention is far from even
    return model


def _look(model: ABMIL, bags: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    seen = model(bags, mask)
    return seen.outputs, seen.attention


def _instances() -> Tensor:
    return torch.randn(sum(LENGTHS), 20, generator=torch.Generator().manual_seed(1))


def _padded(instances: Tensor, filler: float = 0.0, extra: int = 0) -> tuple[Tensor, Tensor]:
    bags = torch.full((len(LENGTHS), max(LENGTHS) + extra, instances.shape[1]), filler, dtype=instances.dtype)
    mask = torch.zeros(bags.shape[:2], dtype=torch.bool)
    for index, part in enumerate(instances.split(LENGTHS)):
        bags[index, : len(part)], mask[index, : len(part)] = part, True
    return bags, mask


@pytest.mark.parametrize("gated", [True, False])
def test_forward_equals_the_equations_in_float64(gated: bool) -> None:
    """Written once more in numpy, from the equations alone."""
    model = _model(gated=gated).double().eval()
    model.feature_scale.fill_(1.7)
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    bag = _instances().double().numpy()
    x = bag / weights["feature_scale"]
    h = x @ weights["projection.weight"].T + weights["projection.bias"]
    gate = np.tanh(h @ weights["attention_v.weight"].T)
    if gated:
        gate = gate / (1 + np.exp(-(h @ weights["attention_u.weight"].T)))
    raw = gate @ weights["attention_w.weight"][0]
    alpha = np.exp(raw - raw.max()) / np.exp(raw - raw.max()).sum()
    logits = weights["head.weight"] @ (alpha @ h) + weights["head.bias"]
    got, got_raw = _look(model, torch.from_numpy(bag)[None], torch.ones(1, len(bag), dtype=torch.bool))
    np.testing.assert_allclose(got[0].detach().numpy(), logits, rtol=1e-12)
    np.testing.assert_allclose(got_raw[0].detach().numpy(), raw, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(attention_weights(got_raw)[0].detach().numpy(), alpha, rtol=1e-11)


@pytest.mark.parametrize("filler", [0.0, 1e4, float("nan"), float("inf")])
def test_masked_equals_unpadded(filler: float) -> None:
    model, instances = _model().double().eval(), _instances().double()
    logits, raw = _look(model, *_padded(instances, filler, extra=7))
    for index, bag in enumerate(instances.split(LENGTHS)):
        alone, alone_raw = _look(model, bag[None], torch.ones(1, len(bag), dtype=torch.bool))
        torch.testing.assert_close(logits[index], alone[0])
        torch.testing.assert_close(raw[index, : len(bag)], alone_raw[0])
        assert (attention_weights(raw)[index, len(bag) :] == 0).all()


def test_order_of_instances_does_not_matter_and_attention_sums_to_one() -> None:
    model, bag = _model().double().eval(), _instances().double()
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(1, len(bag), dtype=torch.bool)
    logits, raw = _look(model, bag[None], mask)
    turned, turned_raw = _look(model, bag[None, order], mask)
    torch.testing.assert_close(logits, turned)
    torch.testing.assert_close(raw[:, order], turned_raw)
    torch.testing.assert_close(attention_weights(raw).sum(1), torch.ones(1, dtype=torch.float64))


def _unit(dtype: torch.dtype = torch.float32, seed: int = 3) -> Unit:
    return Unit(_instances().to(dtype), LENGTHS, seed)


def _loss(logits: Tensor) -> Tensor:
    return (torch.nn.functional.cross_entropy(logits, TRUTH[:, 0].long(), reduction="none") * BAG_WEIGHTS).sum()


def _slope(logits: Tensor) -> tuple[Tensor, Tensor]:
    return CrossEntropy(class_weights=(1, 1, 1)).loss_and_gradient(logits, TRUTH, BAG_WEIGHTS)


def _packed_loss(weights: PackedWeights, unit: Unit, buffer: GradientBuffer) -> float:
    loss = float(gradient(weights, unit, Workspace(CPU), buffer, _slope))
    buffer.flat.mul_(buffer.scales(weights))
    return loss


def _relative_errors(model: ABMIL, gradients: GradientBuffer) -> dict[str, float]:
    errors = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert gradients[name].shape == parameter.shape
        errors[name] = float((parameter.grad - gradients[name]).norm() / parameter.grad.norm())
    return errors


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_packed_gradient_equals_autograd_over_padded_bags(gated: bool, relu: bool) -> None:
    model, unit = _model(gated=gated, relu=relu).train(), _unit()
    model.feature_scale.fill_(1.7)
    loss = _loss(model(*_padded(unit.features)).outputs)
    loss.backward()
    gradients = GradientBuffer(model, torch.float32)
    packed_loss = _packed_loss(PackedWeights.of(model, torch.float32, training=True), unit, gradients)
    assert packed_loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert max(_relative_errors(model, gradients).values()) < 1e-5


def _forward_with_mask(model: ABMIL, unit: Unit, keep: Tensor, scale: float) -> Tensor:
    """The model's forward with a given dropout mask, for autograd."""
    hidden = model.projection(unit.features / model.feature_scale)
    hidden = (torch.relu(hidden) if model.relu else hidden) * keep * scale
    gate = torch.tanh(model.attention_v(hidden))
    gate = gate * torch.sigmoid(model.attention_u(hidden)) if model.attention_u is not None else gate
    raw = model.attention_w(gate)[:, 0]
    parts = zip(raw.split(LENGTHS), hidden.split(LENGTHS), strict=True)
    return model.head(torch.stack([attention_weights(r) @ h for r, h in parts]))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_packed_gradient_with_dropout_equals_autograd_with_the_same_mask(gated: bool, relu: bool) -> None:
    model, unit = _model(0.25, gated, relu).train(), _unit()
    weights = PackedWeights.of(model, torch.float32, training=True)
    mask = dropout_mask(weights.dropout, (len(unit.features), 32), unit.seed, weights.dtype, CPU)
    keep = mask.bool().float()
    assert float(keep.mean()) == pytest.approx(0.75, abs=0.08)
    loss = _loss(_forward_with_mask(model, unit, keep, 4 / 3))
    loss.backward()
    gradients = GradientBuffer(model, torch.float32)
    packed_loss = _packed_loss(weights, unit, gradients)
    assert packed_loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert max(_relative_errors(model, gradients).values()) < 1e-5


def test_rows_of_no_bag_change_nothing() -> None:
    model, unit = _model().train(), _unit()
    weights = PackedWeights.of(model, torch.float32, training=True)
    longer = replace(unit, features=torch.cat([unit.features, torch.zeros(17, 20)]))
    plain, padded = GradientBuffer(model, torch.float32), GradientBuffer(model, torch.float32)
    assert _packed_loss(weights, unit, plain) == pytest.approx(_packed_loss(weights, longer, padded))
    torch.testing.assert_close(padded.flat, plain.flat)


def test_rounding_up_costs_little_and_gives_few_sizes() -> None:
    sizes = [rounded_rows(n) for n in range(1, 40_000)]
    assert all(n <= size < n + max(32, n / 16) for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 250


def test_bfloat16_gradient_is_near_the_exact_one() -> None:
    model, unit = _model().train(), _unit(torch.bfloat16)
    _loss(model(*_padded(unit.features.float())).outputs).backward()
    gradients = GradientBuffer(model, torch.bfloat16)
    _packed_loss(PackedWeights.of(model, torch.bfloat16, training=True), unit, gradients)
    assert max(_relative_errors(model, gradients).values()) < 0.03


def test_dropout_differs_by_seed_only_and_is_absent_outside_training() -> None:
    model = _model(0.5)
    training = PackedWeights.of(model, torch.float32, training=True)
    logits = [forward(training, _unit(seed=seed), Workspace(CPU)).logits for seed in (1, 1, 2)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    still = forward(PackedWeights.of(model, torch.float32, training=False), _unit(), Workspace(CPU)).logits
    torch.testing.assert_close(still, model.eval()(*_padded(_instances())).outputs)


def test_dropout_keeps_the_expected_share_and_scale() -> None:
    model = _model(0.3)
    weights = PackedWeights.of(model, torch.bfloat16, training=True)
    assert weights.dropout == pytest.approx(0.3, abs=1 / 512)
    assert weights.scale == 1 / (1 - weights.dropout)
    unit = Unit(torch.zeros(4000, 20, dtype=torch.bfloat16), (4000,), 1)
    mask = dropout_mask(weights.dropout, (len(unit.features), 32), unit.seed, weights.dtype, CPU)
    assert set(mask.unique().tolist()) == {-1, 0}
    assert float((mask == 0).float().mean()) == pytest.approx(weights.dropout, abs=0.005)


def test_adamw_equals_that_of_torch() -> None:
    ours, theirs = _model(), _model()
    mine, reference = AdamW(ours, 0.1), torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    with open_lanes(CPU, 2) as lanes:
        for step in range(5):
            torch.manual_seed(step)
            flat = torch.randn(sum(p.numel() for p in ours.parameters()))
            scales = torch.rand_like(flat)
            parts = (flat * scales).split([p.numel() for p in theirs.parameters()])
            for parameter, part in zip(theirs.parameters(), parts, strict=True):
                parameter.grad = part.view_as(parameter)
            reference.step()
            mine.step(flat, scales, 0.01, lanes)
    for (name, got), wanted in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, msg=name)


def test_gradients_are_added_in_the_order_of_the_units() -> None:
    """Float addition is not associative: any other order would give another last bit somewhere."""
    model = _model()
    parts = [torch.randn(sum(p.numel() for p in model.parameters())) * 10.0**power for power in (3, 0, -3, 1)]
    wanted = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    total = GradientSum(model, torch.float32)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        for number in order:
            buffer = total.borrow()
            buffer.flat.copy_(parts[number])
            total.add(number, buffer)
        assert torch.equal(total.take(), wanted)
