"""What every MIL model must do, by being a file in `wsi_dino/mil/models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from toy_bags import N_WITNESSES, make_bags

from wsi_dino.errors import ConfigError
from wsi_dino.mil.checkpoint import ModelConfig, load_model, save_model
from wsi_dino.mil.inference import SlideScore, score_slides
from wsi_dino.mil.mil_model import MilModel, ModelRecord
from wsi_dino.mil.models import DEFAULT_MODEL, get_model, model_names, result_name, split_result_name
from wsi_dino.mil.objective import CrossEntropy, SquaredError
from wsi_dino.mil.training import ABMIL_FIELDS, TrainedFold, TrainingSpec, train_fold

NAMES = model_names()
LENGTHS = (7, 1, 12)
EMBED_DIM = 12
# small enough to be quick, apart from the defaults so that a value that is not passed on is noticed
SMALL: dict[str, dict[str, Any]] = {
    "abmil": {"hidden_dim": 32, "attention_dim": 16},
    "additive-abmil": {"hidden_dim": 32, "attention_dim": 16, "classifier_dim": 16},
    "clam-sb": {"hidden_dim": 32, "attention_dim": 16, "k_sample": 3},
    "dsmil": {"query_dim": 32},
    "linear-mean": {},
    "max-pool": {"hidden_dim": 32},
    "mean-pool": {"hidden_dim": 32},
    "transmil": {"hidden_dim": 32, "n_heads": 4, "n_landmarks": 16, "n_iterations": 3, "kernel": 3},
}
each_model = pytest.mark.parametrize("name", NAMES)


def _spec(name: str, **more: Any) -> TrainingSpec:
    return TrainingSpec(model=name, **{**SMALL.get(name, {}), **more})


def _model(name: str, n_outputs: int = 2, **options: Any) -> MilModel:
    """A model in float64 whose scores of tiles are far from even."""
    record = get_model(name)
    torch.manual_seed(0)
    model = record.build(EMBED_DIM, n_outputs, record.hyperparameters(**{**SMALL.get(name, {}), **options}))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.double().eval()


def _bags(filler: float = 0.0, extra: int = 0) -> tuple[Tensor, Tensor, list[Tensor]]:
    bags = [torch.randn(n, EMBED_DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
    padded = torch.full((len(bags), max(LENGTHS) + extra, EMBED_DIM), filler, dtype=torch.float64)
    mask = torch.zeros(padded.shape[:2], dtype=torch.bool)
    for index, bag in enumerate(bags):
        padded[index, : len(bag)], mask[index, : len(bag)] = bag, True
    return padded, mask, bags


def _all(bag: Tensor) -> tuple[Tensor, Tensor]:
    return bag[None], torch.ones(1, len(bag), dtype=torch.bool)


@each_model
def test_record_says_what_must_be_known(name: str) -> None:
    record = get_model(name)
    assert record.name == name
    assert all((record.title, record.paper, record.tile_score))
    assert record.hyperparameters().model_dump().keys() == record.hyperparameters.model_fields.keys()
    documented = record.hyperparameters.__doc__ or ""
    assert [field for field in record.hyperparameters.model_fields if field not in documented] == []


def test_names_are_those_of_the_files_and_unknown_ones_are_refused() -> None:
    assert NAMES[0] == DEFAULT_MODEL
    assert {"abmil", "mean-pool", "max-pool", "linear-mean", "clam-sb", "dsmil", "transmil", "additive-abmil"} <= {
        *NAMES
    }
    with pytest.raises(ConfigError, match=r"'clam-sp'.*clam-sb"):
        get_model("clam-sp")
    for name in NAMES:
        assert split_result_name(result_name("timm/x.y_z", name)) == ("timm/x.y_z", name)


def test_abmil_has_the_same_defaults_in_both_places() -> None:
    record = get_model("abmil")
    assert record.hyperparameters().model_dump() == {name: getattr(TrainingSpec(), name) for name in ABMIL_FIELDS}


@each_model
@pytest.mark.parametrize("n_outputs", [1, 2, 4])
@pytest.mark.parametrize("filler", [0.0, 1e4, float("nan")])
def test_masked_equals_unpadded(name: str, n_outputs: int, filler: float) -> None:
    model = _model(name, n_outputs)
    model.feature_scale.fill_(1.7)
    padded, mask, bags = _bags(filler, extra=5)
    seen = model(padded, mask)
    assert seen.outputs.shape == (len(bags), n_outputs)
    assert seen.attention.shape == mask.shape
    for index, bag in enumerate(bags):
        alone = model(*_all(bag))
        torch.testing.assert_close(seen.outputs[index], alone.outputs[0])
        torch.testing.assert_close(seen.attention[index, : len(bag)], alone.attention[0])
    assert torch.equal(torch.isinf(seen.attention), ~mask)
    assert torch.isfinite(seen.outputs).all()


@each_model
def test_order_of_tiles_matters_only_where_the_record_says_so(name: str) -> None:
    model, bag = _model(name), _bags()[2][2]
    turned = torch.flip(bag, [0])
    seen, other = model(*_all(bag)), model(*_all(turned))
    if get_model(name).order_matters:
        assert not torch.allclose(seen.outputs, other.outputs)
    else:
        torch.testing.assert_close(seen.outputs, other.outputs)
        torch.testing.assert_close(torch.flip(seen.attention, [1]), other.attention)


@each_model
def test_contributions_add_up_to_the_outputs(name: str) -> None:
    model = _model(name, 3)
    padded, mask, _ = _bags(float("nan"), extra=2)
    seen = model(padded, mask)
    if seen.contributions is None:
        assert name in {"abmil", "clam-sb", "dsmil", "max-pool", "transmil"}
        return
    assert seen.contributions.shape == (*mask.shape, 3)
    torch.testing.assert_close(seen.contributions.sum(1), seen.outputs)
    assert (seen.contributions[~mask] == 0).all()


@each_model
def test_gradients_are_finite_and_reach_every_weight(name: str) -> None:
    """Also of a bag of one tile, where there is nothing to compare a tile with."""
    model = _model(name).train()
    padded, mask, bags = _bags()
    seen = model(padded, mask)
    truth, weights = torch.tensor([[0.0], [1.0], [1.0]]), torch.full((len(bags),), 1 / 3)
    loss = sum(share * CrossEntropy(class_weights=(1, 1)).loss(o, truth, weights) for share, o in seen.learnt_streams)
    total = loss + sum(extra(truth, weights) for extra in seen.extra_losses)
    slopes = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    missing = [n for (n, _), slope in zip(model.named_parameters(), slopes, strict=True) if slope is None]
    assert missing == []
    assert all(torch.isfinite(slope).all() for slope in slopes)
    one = model(*_all(bags[1]))
    assert torch.isfinite(one.outputs).all()
    assert torch.isfinite(one.attention).all()


@each_model
def test_model_comes_back_from_disk_to_the_bit(name: str, tmp_path: Path) -> None:
    spec = _spec(name, seed=5)
    config = ModelConfig(
        class_names=("a", "b"), target="y", embed_dim=EMBED_DIM, encoder={"encoder": "toy"}, spec=spec, threshold=0.5,
        threshold_policy="fixed-0.5",
    )  # fmt: skip
    model = _model(name).float()
    save_model(tmp_path / "fold-0.safetensors", model, config)
    back, read = load_model(tmp_path / "fold-0.safetensors")
    assert read == config
    assert read.spec.hyperparameters == spec.hyperparameters
    bag = _all(_bags()[2][0].float())
    assert torch.equal(back(*bag).outputs, model(*bag).outputs)
    assert torch.equal(back(*bag).attention, model(*bag).attention)


def _trained(name: str, threads: int = 1, **more: Any) -> tuple[TrainedFold, list[SlideScore], list[int]]:
    """Train on 60 bags of which half have witnesses; score 60 others."""
    store, cohort = make_bags(140)
    labels = {row.slide_id: row.label for row in cohort.rows}
    train, val, test = cohort.slide_ids[:60], cohort.slide_ids[60:80], cohort.slide_ids[80:]
    settings = {"epochs": 5 if name == "transmil" else 12, "min_epochs": 4, "learning_rate": 1e-2, **more}
    objective = CrossEntropy.of([labels[s] for s in train], 2)
    truth = {slide_id: (float(label),) for slide_id, label in labels.items()}
    trained = train_fold(_spec(name, **settings), store, truth, train, val, objective, threads=threads)
    return trained, score_slides(trained.model, store, test, threads=1), [labels[s] for s in test]


@each_model
def test_witnesses_are_learnt_and_ranked_first(name: str) -> None:
    record: ModelRecord = get_model(name)
    _, scores, labels = _trained(name)
    assert roc_auc_score(labels, [score.probabilities[1] for score in scores]) > 0.9
    positives = [score for score, label in zip(scores, labels, strict=True) if label == 1]
    hits = np.mean([score.attention.argmax() < N_WITNESSES for score in positives])
    if record.ranks_tiles:
        assert hits >= 0.75  # 3 of 8 to 39 tiles by chance
    for score in scores:
        assert score.attention_weights.sum() == pytest.approx(1, abs=1e-5)


@each_model
def test_training_is_the_same_to_the_bit_whatever_the_threads(name: str) -> None:
    runs = [_trained(name, threads, epochs=2, min_epochs=1, max_tiles=10)[0] for threads in (1, 3)]
    for key, value in runs[0].model.state_dict().items():
        assert torch.equal(value, runs[1].model.state_dict()[key]), key
    assert runs[0].history == runs[1].history


@each_model
def test_other_targets_than_classes_are_learnt_or_refused(name: str) -> None:
    store, cohort = make_bags(24)
    value = {row.slide_id: (10.0 * row.label,) for row in cohort.rows}
    objective = SquaredError.of(np.array([value[s][0] for s in cohort.slide_ids[:16]]))
    arguments = (_spec(name, epochs=1), store, value, cohort.slide_ids[:16], cohort.slide_ids[16:], objective)
    if get_model(name).needs_classes:
        with pytest.raises(ConfigError, match=f"{name}.*one class a slide"):
            train_fold(*arguments)
    else:
        assert np.isfinite(train_fold(*arguments).history[0]["val_loss"])


def test_hyperparameters_reach_the_model_and_wrong_ones_are_named() -> None:
    spec = TrainingSpec(model="clam-sb", hidden_dim=24, k_sample=3)
    assert spec.hyperparameters == {
        **get_model("clam-sb").hyperparameters().model_dump(),
        "hidden_dim": 24,
        "k_sample": 3,
    }
    assert TrainingSpec.model_validate_json(spec.model_dump_json()) == spec
    assert "hidden_dim" not in spec.model_dump()
    assert "options" not in TrainingSpec().model_dump()
    for wrong, said in (
        ({"model": "clam-sb", "ksample": 3}, "clam-sb has no hyper-parameter 'ksample'. Did you mean 'k_sample'"),
        ({"model": "mean-pool", "attention_dim": 3}, "mean-pool has no hyper-parameter 'attention_dim'"),
        ({"model": "clam-sb", "k_sample": 0}, "clam-sb: k_sample = 0"),
        ({"model": "transmil", "n_heads": 7}, "does not divide"),
        ({"options": {"k_sample": 3}}, "abmil has no hyper-parameter 'k_sample'"),
    ):
        with pytest.raises(ValueError, match=said.replace("(", r"\(")):
            TrainingSpec(**wrong)
