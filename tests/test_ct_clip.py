"""CT-CLIP's convention, against scikit-learn and its own loop written out."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_dino.evaluation.ct_clip import corner_cut, ct_clip_figures


def _scores(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = (random.random(400) < 0.2).astype(int)
    return truth, np.clip(0.3 + 0.2 * truth + 0.2 * random.normal(size=400), 0, 1).round(2)


@pytest.mark.parametrize("seed", range(5))
def test_the_cut_is_the_last_of_the_nearest(seed: int) -> None:
    truth, score = _scores(seed)
    best, chosen = 1e9, 0.0
    for cut in np.linspace(0, 1, 100):
        tpr = np.mean(score[truth == 1] > cut)
        fpr = np.mean(score[truth == 0] > cut)
        distance = np.sqrt((1 - tpr) ** 2 + fpr**2)
        if distance <= best:
            best, chosen = distance, cut
    assert corner_cut(truth == 1, score) == pytest.approx(chosen)


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_scikit_learn(seed: int) -> None:
    from sklearn.metrics import accuracy_score, f1_score, precision_score, roc_auc_score

    truth, score = _scores(seed)
    figures = ct_clip_figures(truth[:, None].astype(float), score[:, None], ["x"])["labels"]["x"]
    said = (score > figures["threshold"]).astype(int)
    assert figures["auc"] == pytest.approx(roc_auc_score(truth, score))
    assert figures["f1_two_class_weighted"] == pytest.approx(f1_score(truth, said, average="weighted"))
    assert figures["accuracy"] == pytest.approx(accuracy_score(truth, said))
    assert figures["precision"] == pytest.approx(precision_score(truth, said))


def test_a_label_of_one_class_takes_no_part_and_the_flag_stays() -> None:
    truth, score = _scores(0)
    targets = np.stack([truth, np.zeros_like(truth)], axis=1).astype(float)
    targets[:10, 0] = np.nan
    figures = ct_clip_figures(targets, np.stack([score, score], axis=1), ["a", "b"])
    assert set(figures["labels"]) == {"a"}
    assert figures["summary"]["auc"] == figures["labels"]["a"]["auc"]
    assert figures["optimistic"] is True
