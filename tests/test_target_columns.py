"""Survival, numbers and several labels read from a table, and dealt into balanced folds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi_dino.errors import CohortError, ConfigError, SplitError
from wsi_dino.evaluation.cohort import Cohort
from wsi_dino.evaluation.label_table import LabelTable, read_label_table
from wsi_dino.evaluation.split import Split, make_folds, make_repeats
from wsi_dino.evaluation.target_columns import read_several_labels, read_survival, read_values
from wsi_dino.mil.permuted_labels import permuted_cohort
from wsi_dino.mil.tasks import Task, find_columns, make_task


def _table(folder: Path, lines: list[str]) -> LabelTable:
    path = folder / "labels.csv"
    path.write_text("\n".join(lines))
    return read_label_table(path)


def _many(folder: Path, n: int = 103) -> LabelTable:
    random, lines = np.random.default_rng(0), ["slide_id,patient_id,time,event,value,a,b,c"]
    for i in range(n):
        time, event, value = random.exponential(9) + 0.1, int(random.random() < 0.3), random.normal()
        a, b, c = (random.random(3) < (0.5, 0.15, 0.7)).astype(int)
        lines += [
            f"S{i}-{j},P{i},{time:.2f},{event},{value:.3f},{a},{b},{'' if i % 9 == 0 else c}" for j in range(1 + i % 2)
        ]
    return _table(folder, lines)


def test_words_of_events_and_missing_outcomes(tmp_path: Path) -> None:
    rows = ["slide_id,t,e", "a,1.5,TRUE", "b,2,no", "c,3,1", "d,4,0.0", "e,,1", "f,5,NA", "g,7e1,Yes"]
    cohort = read_survival(_table(tmp_path, rows), "t", "e")
    assert cohort.values.tolist() == [[1.5, 1], [2, 0], [3, 1], [4, 0], [70, 1]]
    assert cohort.unlabelled == ("e", "f")
    assert cohort.counts() == {"censored": 2, "event": 3}
    assert cohort.rows[0].target == "1.5 (event)"


@pytest.mark.parametrize("cell", ["0", "-3", "nan5", "inf", "1,5", "12 months"])
def test_a_time_that_is_none_is_named_with_its_line(tmp_path: Path, cell: str) -> None:
    with pytest.raises(CohortError, match=r"column 't': expected a positive number, got .* \(line 3\)"):
        read_survival(_table(tmp_path, ["slide_id;t;e", "a;1;1", f"b;{cell};1"]), "t", "e")


def test_slides_of_a_patient_share_their_outcome(tmp_path: Path) -> None:
    rows = ["slide_id,patient_id,t,e", "a,P,1,1", "b,P,1.0,yes"]
    assert len(read_survival(_table(tmp_path, rows), "t", "e")) == 2  # the same, spelt otherwise
    with pytest.raises(CohortError, match=r"patient P has one t and e, but slide a says 1 \(event\), slide b 1 \(cens"):
        read_survival(_table(tmp_path, [*rows[:2], "b,P,1,0"]), "t", "e")


def test_nobody_with_the_event_is_an_error_and_all_of_them_is_not(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="nothing to learn"):
        read_survival(_table(tmp_path, ["slide_id,t,e", "a,1,0", "b,2,0"]), "t", "e")
    everybody = read_survival(_table(tmp_path, ["slide_id,t,e", *(f"s{i},{i + 1},1" for i in range(12))]), "t", "e")
    assert len(make_folds(everybody, 3, 0)) == 3


@pytest.mark.parametrize(
    ("cells", "said"),
    [(["1", "x"], "finite number"), (["1", "1"], "every v is 1"), (["", "NA"], "no slide has a value")],
)
def test_numbers_that_cannot_be_predicted(tmp_path: Path, cells: list[str], said: str) -> None:
    with pytest.raises(CohortError, match=said):
        read_values(_table(tmp_path, ["slide_id,v", *(f"s{i},{cell}" for i, cell in enumerate(cells))]), "v")


def test_labels_may_be_missing_and_must_be_yes_or_no(tmp_path: Path) -> None:
    table = _table(tmp_path, ["slide_id,x,y,z,w", "a,pos,1,1,q", "b,neg,,2,q", "c,,0,3,q", "d,,,1,q"])
    cohort = read_several_labels(table, ["x", "y"])
    assert cohort.value_names == (("neg", "pos"), ("0", "1"))
    assert np.array_equal(cohort.values, [[1, 1], [0, np.nan], [np.nan, 0]], equal_nan=True)
    assert cohort.unlabelled == ("d",)
    for wrong, said in (("z", "found 1, 2, 3"), ("w", "found q")):
        with pytest.raises(CohortError, match=said):
            read_several_labels(table, ["x", wrong])


def _shares(cohort: Cohort, split: Split, subset: str, value: np.ndarray) -> list[float]:
    of = dict(zip(cohort.patient_ids, value, strict=True))
    return [float(np.mean([of[patient] for patient in fold.patients(subset)])) for fold in split]


def test_every_kind_is_dealt_evenly_and_patients_stay_whole(tmp_path: Path) -> None:
    table = _many(tmp_path)
    survival, number = read_survival(table, "time", "event"), read_values(table, "value")
    labels = read_several_labels(table, ["a", "b", "c"])
    for cohort, value, width in (
        (survival, survival.values[:, 1], 0.06),
        (number, (number.labels >= 2).astype(float), 0.06),
        (labels, labels.values[:, 1], 0.06),  # the rarest
        (labels, labels.values[:, 0], 0.25),
    ):
        split = make_folds(cohort, 5, 0)
        tested = [patient for fold in split for patient in fold.test]
        assert sorted(tested) == sorted(cohort.patients)
        assert np.ptp(_shares(cohort, split, "test", value)) < width
        assert all(10 <= len(fold.val) <= 12 for fold in split)
        assert make_folds(cohort, 5, 0) == split


def test_too_few_events_for_the_folds_are_refused(tmp_path: Path) -> None:
    rows = ["slide_id,t,e", *(f"s{i},{i + 1},{int(i < 4)}" for i in range(40))]
    cohort = read_survival(_table(tmp_path, rows), "t", "e")
    with pytest.raises(SplitError, match="the event was seen in 4 patients, fewer than the 5"):
        make_folds(cohort, 5, 0)
    assert all(any(cohort.patients[p][0].label for p in fold.test) for fold in make_folds(cohort, 4, 0))
    subsets = {patient: "test" if cohort.patients[patient][0].label else "train" for patient in cohort.patients}
    with pytest.raises(SplitError, match="nobody with the event"):
        make_repeats(cohort, subsets, 2, 0, "mine")


def test_permuted_outcomes_stay_whole(tmp_path: Path) -> None:
    cohort = read_survival(_many(tmp_path), "time", "event")
    permuted = permuted_cohort(cohort, 3)
    outcome = lambda c: sorted({row.patient_id: row.values for row in c.rows}.values())  # noqa: E731
    assert outcome(permuted) == outcome(cohort)
    assert all(row.label == row.values[1] for row in permuted)
    assert all(len({row.values for row in rows}) == 1 for rows in permuted.patients.values())
    assert [row.values for row in permuted] != [row.values for row in cohort]


def test_a_task_of_a_few_lines() -> None:
    survival = make_task("os", {"time": "OS", "event": "dead", "survival_head": "cox"})
    assert (survival.kind, survival.columns, survival.target) == ("survival", ("OS", "dead"), "OS, dead")
    assert find_columns(survival, ["slide_id", "os", "Dead"]) == ("os", "Dead")
    assert make_task("many", {"targets": ["a", "b"]}).kind == "labels"
    number = make_task("age", {"kind": "regression"})
    assert number.columns == ("age",)
    assert Task(name="er", target="ER").kind == "classes"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"kind": "survival"}, "needs `time` and `event`"),
        ({"time": "t"}, "needs `time` and `event`"),
        ({"targets": ["a"]}, "two or more"),
        ({"targets": ["a", "a"]}, "two or more different"),
        ({"kind": "regression", "classes": ["a", "b"]}, "classes belongs to kind classes or labels"),
        ({"kind": "regression", "horizon": 3}, "horizon belongs to kind survival"),
        ({"time": "t", "event": "e", "survival_head": "deep"}, "survival_head"),
        ({"time": "t", "event": "e", "horizon": -1}, "horizon"),
        ({"kind": "ranking"}, "kind"),
    ],
)
def test_a_wrong_task_says_what_is_wrong(content: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_task("mine", content)
