"""Searching hyper-parameters: on validation alone, the same however often it was interrupted."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_bags import make_bags

from wsi_dino.errors import ConfigError
from wsi_dino.mil.objective import CrossEntropy
from wsi_dino.mil.search import SearchGround, SearchSpec, search_fold, search_space, with_values
from wsi_dino.mil.search_range import Between, OneOf
from wsi_dino.mil.training import TrainingSpec, train_fold

pytest.importorskip("optuna")
SPEC = TrainingSpec(model="mean-pool", epochs=3, min_epochs=1, learning_rate=1e-3, seed=4)
FIXED = ("hidden_dim",)


def _ground(spec: TrainingSpec = SPEC) -> SearchGround:
    store, cohort = make_bags(24)
    truth = {row.slide_id: (float(row.label),) for row in cohort.rows}
    objective = CrossEntropy(class_weights=(1.0, 1.0))
    return SearchGround(spec, store, truth, cohort.slide_ids[:16], cohort.slide_ids[16:], objective, "cpu", 1)


def _search(path: Path, n_trials: int, ground: SearchGround | None = None, key: str = "k") -> Any:
    return search_fold(ground or _ground(), SearchSpec(n_trials=n_trials, fixed=FIXED), key, path)


def test_what_is_searched_is_what_the_model_says_and_the_user_has_not_set() -> None:
    assert search_space(SPEC, FIXED).keys() == {"dropout", "learning_rate", "weight_decay"}
    clam = search_space(TrainingSpec(model="clam-sb"))
    assert clam["k_sample"] == OneOf((4, 8, 16, 32))
    assert isinstance(clam["learning_rate"], Between)
    assert search_space(TrainingSpec(model="linear-mean")) == {}
    assert {"gated", "hidden_dim"} <= search_space(TrainingSpec()).keys()


def test_values_find_their_place() -> None:
    clam = with_values(TrainingSpec(model="clam-sb", dropout=0.1), {"k_sample": 4, "learning_rate": 1e-3})
    assert (clam.options["k_sample"], clam.options["dropout"], clam.learning_rate) == (4, 0.1, 1e-3)
    assert with_values(TrainingSpec(), {"hidden_dim": 128}) == TrainingSpec(hidden_dim=128)


def test_best_of_all_trials_is_chosen_and_the_first_is_what_stood_there(tmp_path: Path) -> None:
    found = _search(tmp_path / "s.json", 5)
    losses = [trial.val_loss for trial in found.trials]
    assert found.trials[0].values == {"dropout": 0.25, "learning_rate": 1e-3, "weight_decay": 1e-5}
    assert losses[found.best] == min(losses)
    assert len({json.dumps(trial.values) for trial in found.trials}) == 5
    for trial in found.trials[1:]:
        assert 0 <= trial.values["dropout"] <= 0.5
        assert 1e-5 <= trial.values["learning_rate"] <= 3e-3
    ground = _ground()
    again = train_fold(
        with_values(SPEC, found.values), ground.bags, ground.truth, ground.train_ids, ground.val_ids, ground.objective
    )
    assert again.history[again.best_epoch]["val_loss"] == min(losses)


def test_going_on_after_an_interruption_is_as_if_there_had_been_none(tmp_path: Path) -> None:
    whole = _search(tmp_path / "whole.json", 6)
    _search(tmp_path / "cut.json", 3)
    resumed = _search(tmp_path / "cut.json", 6)
    assert resumed == whole
    assert (tmp_path / "cut.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert _search(tmp_path / "cut.json", 2).trials == whole.trials[:2]


def test_trials_of_another_request_or_a_broken_file_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    whole = _search(path, 3)
    content = json.loads(path.read_text())
    for trial in content["trials"]:
        trial["val_loss"] = -1.0
    path.write_text(json.dumps(content))
    assert _search(path, 3).trials[0].val_loss == -1.0, "the file is read at all"
    assert _search(path, 3, key="another") == whole
    path.write_text('{"key": "k", "trials": [{"val')
    assert _search(path, 3) == whole


def test_proposals_depend_on_the_seed(tmp_path: Path) -> None:
    one, other = (
        _search(tmp_path / f"{seed}.json", 2, _ground(SPEC.model_copy(update={"seed": seed}))) for seed in (1, 2)
    )
    assert one.trials[1].values != other.trials[1].values


def test_a_training_that_diverges_is_never_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ground = _ground()
    answers = iter([None, 0.7, None])
    monkeypatch.setattr(SearchGround, "val_loss", lambda *_: next(answers))
    found = _search(tmp_path / "s.json", 3, ground)
    assert [trial.val_loss for trial in found.trials] == [None, 0.7, None]
    assert found.best == 1
    monkeypatch.setattr(SearchGround, "val_loss", lambda *_: None)
    with pytest.raises(ConfigError, match="none of 2 trials came to a finite"):
        _search(tmp_path / "t.json", 2, ground)


def test_divergence_is_seen_as_such(tmp_path: Path) -> None:
    ground = _ground(TrainingSpec(model="mean-pool", epochs=2, min_epochs=1, hidden_dim=8, learning_rate=1e30))
    assert ground.val_loss({}, lambda row: None) is None
    assert replace(ground, spec=SPEC).val_loss({}, lambda row: None) is not None


def test_missing_optuna_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'wsi_dino\[search\]'"):
        _search(tmp_path / "s.json", 2)
