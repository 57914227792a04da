"""Models on disk: whole, readable, without pickle, and tied to their encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wsi_dino.errors import FeatureFileError, WeightsError
from wsi_dino.mil.checkpoint import ModelConfig, find_models, load_model, read_config, require_same_encoder, save_model
from wsi_dino.mil.training import TrainingSpec, build_model

SPEC = TrainingSpec(hidden_dim=16, attention_dim=8, seed=3)
CONFIG = ModelConfig(
    class_names=("Negative", "Positive"), target="ER", embed_dim=5, encoder={"encoder": "toy", "embed_dim": 5},
    spec=SPEC, threshold=0.4, threshold_policy="youden-on-validation", fold=1,
)  # fmt: skip


def _saved(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    model = build_model(SPEC.model_copy(update={"seed": 9}), 5, 2).eval()
    model.feature_scale.fill_(2.5)
    save_model(tmp_path / "fold-1.safetensors", model, CONFIG)
    return tmp_path / "fold-1.safetensors", model


def test_model_comes_back_to_the_bit(tmp_path: Path) -> None:
    path, model = _saved(tmp_path)
    back, config = load_model(path)
    assert config == CONFIG == read_config(path)
    assert config.fingerprint == CONFIG.fingerprint
    assert not back.training
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)


def test_config_is_readable_beside_it_and_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    path, model = _saved(tmp_path)
    assert json.loads(path.with_suffix(".json").read_text())["class_names"] == ["Negative", "Positive"]
    first = path.read_bytes()
    save_model(path, model, CONFIG)  # type: ignore[arg-type]
    assert path.read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fold-1.json", "fold-1.safetensors"]


def test_broken_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    path, model = _saved(tmp_path)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-100])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    other = tmp_path / "other.safetensors"
    wrong = CONFIG.model_copy(update={"embed_dim": 6})
    save_model(other, model, wrong)  # type: ignore[arg-type]
    for bad, said in ((cut, "broken"), (foreign, "not written by"), (tmp_path / "no", "no such file"), (other, "fit")):
        with pytest.raises(WeightsError, match=said):
            load_model(bad)


def test_models_are_found_in_fold_order(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no \\*"):
        find_models(tmp_path)
    for fold in (10, 2, 0):
        (tmp_path / f"fold-{fold}.safetensors").touch()
    assert [path.stem for path in find_models(tmp_path)] == ["fold-0", "fold-2", "fold-10"]


def test_features_of_another_encoder_are_refused() -> None:
    require_same_encoder(CONFIG, {"encoder": "toy", "embed_dim": 5})
    with pytest.raises(FeatureFileError, match=r"'toy'.*'uni'"):
        require_same_encoder(CONFIG, {"encoder": "uni", "embed_dim": 5})
