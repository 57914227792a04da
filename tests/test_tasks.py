"""Tasks: found by name, their column found in a table, their values made classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi_dino.errors import CohortError, ConfigError
from wsi_dino.evaluation.cohort import Cohort, read_cohort
from wsi_dino.evaluation.label_table import read_label_table
from wsi_dino.mil.tasks import Task, expand_task, find_column, find_task, make_task, shipped_tasks


def _cohort(folder: Path, task: Task, column: str, values: list[str]) -> Cohort:
    path = folder / "labels.csv"
    path.write_text(f"slide_id,{column}\n" + "".join(f"S{i},{value}\n" for i, value in enumerate(values)))
    table = read_label_table(path)
    found = find_column(task, table.header)
    return read_cohort(table, found, classes=task.classes, class_of=task.class_of(table.values(found)))


def test_five_bcnb_tasks_are_shipped() -> None:
    tasks = shipped_tasks()
    assert {"bcnb-er", "bcnb-pr", "bcnb-her2", "bcnb-ki67", "bcnb-aln"} <= set(tasks)
    for name, task in tasks.items():
        assert task.name == name
        assert task.classes is not None
        assert task.description


@pytest.mark.parametrize("column", ["ER", "er", "Er", "bcnb-er", "bcnb_er", "BCNB_ER"])
@pytest.mark.parametrize("values", [["Positive", "Negative"], ["1", "0"], ["positive", "negative"], ["1.0", "0.0"]])
def test_er_is_found_under_its_names_and_values(tmp_path: Path, column: str, values: list[str]) -> None:
    cohort = _cohort(tmp_path, shipped_tasks()["bcnb-er"], column, values * 2)
    assert cohort.class_names == ("Negative", "Positive")
    assert cohort.labels.tolist() == [1, 0, 1, 0]


def test_exact_column_wins_over_another_case() -> None:
    assert find_column(Task(name="t", target="ER"), ["er", "ER"]) == "ER"


def test_two_fitting_columns_are_an_error_that_names_both() -> None:
    with pytest.raises(CohortError, match="er, Er"):
        find_column(Task(name="t", target="ER"), ["er", "Er"])


def test_missing_column_lists_what_is_there() -> None:
    with pytest.raises(CohortError, match="slide_id, HER2"):
        find_column(shipped_tasks()["bcnb-er"], ["slide_id", "HER2"])


def test_lymph_nodes_merge_to_two_classes(tmp_path: Path) -> None:
    cohort = _cohort(tmp_path, shipped_tasks()["bcnb-aln"], "ALN status", ["N0", "N+(1-2)", "N+(>2)", "N0", "N+"])
    assert cohort.class_names == ("N0", "N+")
    assert cohort.labels.tolist() == [0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("values", "labels"),
    [(["13.9", "14", "90", "0"], [0, 1, 1, 0]), (["10%", "20%"], [0, 1]), (["Negative", "Positive"], [0, 1]),
     (["0", "1", "1"], [0, 1, 1])],
)  # fmt: skip
def test_ki67_takes_percent_or_classes(tmp_path: Path, values: list[str], labels: list[int]) -> None:
    assert _cohort(tmp_path, shipped_tasks()["bcnb-ki67"], "Ki67", values).labels.tolist() == labels


def test_ki67_as_fractions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="look like fractions"):
        _cohort(tmp_path, shipped_tasks()["bcnb-ki67"], "Ki67", ["0.1", "0.4"])


def test_value_outside_the_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="Equivocal"):
        _cohort(tmp_path, shipped_tasks()["bcnb-her2"], "HER2", ["Positive", "Negative", "Equivocal"])


def test_own_task_wins_over_a_shipped_one() -> None:
    own = {"bcnb-er": {"target": "oestrogen", "classes": ["neg", "pos"]}}
    assert find_task("bcnb-er", None, own).target == "oestrogen"


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'bcnb-er'"):
        find_task("bcnb-err", None, {})


def test_target_alone_makes_a_task_of_its_name() -> None:
    assert find_task(None, "ER", {}) == Task(name="ER", target="ER")
    assert find_task("my-er", "ER", {}) == Task(name="my-er", target="ER")
    with pytest.raises(ConfigError, match="--task NAME"):
        find_task(None, None, {})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [({"targt": "ER"}, "targt"), ({"threshold": 14}, "two classes"), ({"merge": {"N+": ["x"]}}, "not among classes"),
     ({"classes": ["a", "a"]}, "twice")],
)  # fmt: skip
def test_wrong_task_is_refused(content: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make_task("mine", content)


def test_every_shipped_task_of_a_scheme_asks_for_columns_that_a_cohort_writes() -> None:
    """Columns of the shipped schemes come from `wsi-dino cohort`; a renamed one would fail at the user's."""
    from wsi_dino.pathology.cohorts import camelyon16, camelyon17

    written = {*camelyon16._COLUMNS, *camelyon17._COLUMNS}
    for task in shipped_tasks().values():
        asked = {*task.scheme.keep, *task.scheme.test_keep, *filter(None, [task.scheme.column])}
        assert asked <= written, task.name


@pytest.mark.parametrize(
    ("scheme", "complaint"),
    [
        ({"kind": "fixed"}, "needs `column`"),
        ({"kind": "k-fold", "column": "official"}, "column belongs to kind fixed"),
        ({"kind": "k-fold", "seeds": 3}, "seeds belongs to kind fixed or external"),
        ({"kind": "fixed", "column": "official", "folds": 3}, "folds belongs to kind k-fold"),
        ({"kind": "fixed", "column": "official", "test_keep": {"a": ["b"]}}, "test_keep belongs to kind external"),
        ({"kind": "loo"}, "scheme.kind"),
        ({"kind": "external", "sedes": 2}, "Did you mean 'seeds'"),
        ({"kind": "external", "seeds": 0}, "scheme.seeds"),
    ],
)
def test_wrong_scheme_is_refused(scheme: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make_task("mine", {"scheme": scheme})


def test_group_of_tasks_holds_own_ones_too() -> None:
    own = {"lung-egfr": {"target": "EGFR"}, "lung-kras": {}, "all-of-it": {"target": "x"}}
    assert expand_task("all-lung", own) == ["lung-egfr", "lung-kras"]
    assert expand_task("all-of-it", own) == ["all-of-it"]
    assert expand_task("ER", own) == ["ER"]
    with pytest.raises(ConfigError, match="Did you mean 'all-lung'"):
        expand_task("all-lnug", own)
