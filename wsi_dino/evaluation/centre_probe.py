"""Can the centre be told from the features? If it can, a model may have learnt where a slide was made."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wsi_dino.evaluation.bootstrap import FoldPredictions, Interval, cv_interval
from wsi_dino.evaluation.cohort import Cohort, CohortRow
from wsi_dino.evaluation.metrics import STATISTICS
from wsi_dino.evaluation.split import Fold, make_folds

_FOLDS = 5
_LEAST_PATIENTS = 3
_ITERATIONS = 500


@dataclass(frozen=True)
class CentreProbe:
    """How well a linear model tells the centre.

    Attributes:
        balanced_accuracy: mean over centres of the share told rightly, mean over folds by patient, with
            its 95 % interval over patients.
        chance: what guessing gives: 1 / centres.
        centres: those that took part.
        left_out: centres of fewer than three patients.
        n_folds: of the cross-validation.
    """

    balanced_accuracy: Interval
    chance: float
    centres: tuple[str, ...]
    left_out: tuple[str, ...]
    n_folds: int

    @property
    def tells(self) -> bool:
        """Whether the interval lies above chance."""
        return self.balanced_accuracy.low > self.chance


def probe_centres(
    features: Mapping[str, np.ndarray], centre_of: Mapping[str, str], patient_of: Mapping[str, str], *,
    n_resamples: int = 1000, seed: int = 0,
) -> CentreProbe | None:  # fmt: skip
    """Cross-validate logistic regression of the centre on one vector a slide, folds by patient.

    Args:
        features: ``(embed_dim,)`` of each slide, e.g. the mean over its tiles.
        centre_of: of each slide; slides without one take no part.
        patient_of: of each slide.
        n_resamples: of the bootstrap over patients.
        seed: of folds and bootstrap.

    Returns:
        None where fewer than two centres have three patients.
    """
    slides = [slide for slide in features if centre_of.get(slide)]
    patients = {c: {patient_of[s] for s in slides if centre_of[s] == c} for c in {centre_of[s] for s in slides}}
    centres = tuple(sorted(c for c, members in patients.items() if len(members) >= _LEAST_PATIENTS))
    if len(centres) < 2:
        return None
    rows = [
        CohortRow(s, patient_of[s], centre_of[s], centres.index(centre_of[s]))
        for s in slides
        if centre_of[s] in centres
    ]
    cohort = Cohort(tuple(rows), centres, "centre")
    n_folds = min(_FOLDS, *(len(patients[centre]) for centre in centres))
    split = make_folds(cohort, n_folds, seed)
    predictions = [_predict(cohort, fold, features) for fold in split]
    interval = cv_interval(predictions, STATISTICS["balanced_accuracy"], n_resamples=n_resamples, seed=seed)
    return CentreProbe(interval, 1 / len(centres), centres, tuple(sorted(set(patients) - set(centres))), n_folds)


def _predict(cohort: Cohort, fold: Fold, features: Mapping[str, np.ndarray]) -> FoldPredictions:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    label_of = {row.slide_id: row.label for row in cohort.rows}
    patient_of = {row.slide_id: row.patient_id for row in cohort.rows}
    train, test = cohort.slides_of((*fold.train, *fold.val)), cohort.slides_of(fold.test)
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=_ITERATIONS, C=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(np.stack([features[s] for s in train]), [label_of[s] for s in train])
    scores = model.predict_proba(np.stack([features[s] for s in test]))
    truth = np.array([label_of[s] for s in test], np.int64)
    scores = scores[:, 1] if len(cohort.class_names) == 2 else scores
    return FoldPredictions(truth, scores, [patient_of[s] for s in test])
