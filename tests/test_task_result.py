"""Results are read back whole, and other folds, slides or labels are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_results import write_result

from wsi_dino.errors import ResultError
from wsi_dino.evaluation.task_result import check_comparable, find_results, read_result


def test_reads_what_was_written(tmp_path: Path) -> None:
    result = read_result(write_result(tmp_path, "er", "a", slides_each=2, n_patients=30))
    assert (result.task, result.encoder, result.classes) == ("er", "a", ["Negative", "Positive"])
    assert sum(map(len, result.slide_ids)) == 60
    assert all(list(slides) == sorted(slides) for slides in result.slide_ids)
    assert len(result.subset_of) == len(result.folds) == 3
    tested = {patient for fold in result.folds for patient in fold.patient_id}
    assert len(tested) == 30


def test_a_comparison_is_no_encoder(tmp_path: Path) -> None:
    for name in ("b", "a", "comparison"):
        write_result(tmp_path, "er", name)
    assert [folder.name for folder in find_results(tmp_path / "mil/er")] == ["a", "b"]
    assert find_results(tmp_path / "mil/none") == []


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda f: (f / "metrics.json").unlink(), "metrics.json"),
        (lambda f: (f / "metrics.json").write_text("{"), "metrics.json"),
        (lambda f: (f / "predictions.csv").unlink(), "predictions.csv"),
        (lambda f: (f / "splits.csv").unlink(), "splits.csv"),
        (lambda f: _edit(f / "predictions.csv", ",test,", ",val,"), "do not belong together"),
        (
            lambda f: _edit(f / "metrics.json", '"classes": ["Negative", "Positive"]', '"classes": []'),
            "cannot be compared",
        ),
    ],
)
def test_broken_results_are_refused(tmp_path: Path, damage: Callable[[Path], None], complaint: str) -> None:
    folder = write_result(tmp_path, "er", "a")
    damage(folder)
    with pytest.raises(ResultError, match=complaint):
        read_result(folder)


def test_score_that_is_no_number_is_refused_with_its_slide(tmp_path: Path) -> None:
    folder = write_result(tmp_path, "er", "a")
    lines = (folder / "predictions.csv").read_text().splitlines()
    cells = lines[4].split(",")
    for value, complaint in (("nan", f"slide {cells[3]} is no number"), ("", "missing")):
        changed = [*lines[:4], ",".join([*cells[:6], value, *cells[7:]]), *lines[5:]]
        (folder / "predictions.csv").write_text("\n".join(changed) + "\n")
        with pytest.raises(ResultError, match=complaint):
            read_result(folder)


def test_permuted_labels_are_refused(tmp_path: Path) -> None:
    folder = write_result(tmp_path, "er", "a", permuted_labels=3)
    with pytest.raises(ResultError, match=r"permuted \(seed 3\)"):
        read_result(folder)


def test_predictions_of_another_run_are_found_out(tmp_path: Path) -> None:
    folder, other = write_result(tmp_path, "er", "a"), write_result(tmp_path, "er", "b", quality=0.1)
    (folder / "predictions.csv").write_text((other / "predictions.csv").read_text())
    with pytest.raises(ResultError, match="do not belong together"):
        read_result(folder)


def test_same_folds_may_be_compared(tmp_path: Path) -> None:
    check_comparable([read_result(write_result(tmp_path, "er", name)) for name in ("a", "b", "c")])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"fold_seed": 1}, r"Fold 0: patient P\d+ is in \w+ for a, in \w+ for b; \d+ patients in all"),
        ({"n_folds": 4}, "a has 3 folds, b 4"),
        ({"n_patients": 58}, "no subset for b"),
        ({"slides_each": 2}, "slides were tested by one of them only"),
        ({"classes": ("neg", "pos")}, "classes differ"),
    ],
)
def test_difference_is_named(tmp_path: Path, settings: dict[str, object], complaint: str) -> None:
    first = read_result(write_result(tmp_path, "er", "a"))
    other = read_result(write_result(tmp_path, "er", "b", **settings))  # type: ignore[arg-type]
    with pytest.raises(ResultError, match=complaint) as refused:
        check_comparable([first, other])
    assert "Comparing a and b on task er" in str(refused.value)
    assert "--splits" in str(refused.value)


def test_other_label_of_one_slide_is_named(tmp_path: Path) -> None:
    first = read_result(write_result(tmp_path, "er", "a"))
    folder = write_result(tmp_path, "er", "b")
    lines = (folder / "predictions.csv").read_text().splitlines()
    cells = lines[1].split(",")
    cells[5] = str(1 - int(cells[5]))
    (folder / "predictions.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["summary"]["auc"]["value"] = None
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(ResultError, match=f"slide {cells[3]} has another label"):
        check_comparable([first, read_result(folder)])
