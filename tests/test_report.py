"""The report: says the right thing, holds no network and no script, and is the same every time."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from wsi_dino.evaluation.report import (
    Example,
    ExampleTile,
    ReportInput,
    TrainingCurve,
    confusion_table,
    render_report,
    verdict,
)

CLASSES = ["Negative", "Positive"]
HOSTILE = '<script>alert("x")</script>&\'"$x_1$'


def _predictions(n: int, separation: float, classes: list[str], seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(n):
        label = index % len(classes)
        logits = rng.normal(size=len(classes))
        logits[label] += separation
        scores = np.exp(logits) / np.exp(logits).sum()
        rows.append({
            "fold": index % 5, "subset": "test", "patient_id": f"P{index // 2}", "slide_id": f"S{index}",
            "target": classes[label], "label": label, "predicted": classes[int(scores.argmax())],
            "score": float(scores[-1]),
            **{f"score_{name}": float(score) for name, score in zip(classes, scores, strict=True)},
        })  # fmt: skip
    return rows


def _metrics(rows: list[dict[str, Any]], classes: list[str], **changes: Any) -> dict[str, Any]:
    names = ("auc", "accuracy", "precision", "recall", "f1")
    fold = {"n_train": 70, "n_val": 10, "n_test": 20, "threshold": 0.47, **dict.fromkeys(names, 0.81)}
    metrics: dict[str, Any] = {
        "task": "bcnb-er", "encoder": "dinov3-s", "target": "ER", "classes": classes,
        "n_slides": len(rows), "n_patients": len({row["patient_id"] for row in rows}),
        "folds": [{"fold": index, **fold} for index in range(5)],
        "summary": {name: {"value": 0.81, "low": 0.74, "high": 0.88, "std": 0.03} for name in names},
        "cohort": {
            "classes": [{"name": name, "slides": 50, "patients": 25} for name in classes],
            "tiles": {"min": 12, "median": 968, "max": 4022, "total": 96800}, "has_patient_id": True,
        },
        "calibration": {
            "ece": 0.041, "brier": 0.15, "brier_of_prevalence": 0.25, "n": 100, "n_bins": 10,
            "bins": {"predicted": [0.1, 0.5, 0.9], "observed": [0.2, 0.5, 0.85], "count": [40, 0, 60]},
        },
        "protocol": {
            "threshold_policy": "youden", "threshold_policy_text": "Youden's J on the validation slides of the fold",
            "split_scheme": "5 folds by patient, stratified, seed 0", "interval": "bootstrap over patients",
        },
        "exclusions": [{"slide_id": "S900", "reason": "no features", "detail": "not embedded"}],
        "warnings": ["Only 50 patients: expect intervals of 0.1 and more."],
        "provenance": {"versions": {"wsi_dino": "0.1.0", "torch": "2.13"}},
    }  # fmt: skip
    return metrics | changes


def _content(rows: list[dict[str, Any]] | None = None, classes: list[str] = CLASSES, **changes: Any) -> ReportInput:
    rows = _predictions(100, 1.5, classes) if rows is None else rows
    rng = np.random.default_rng(1)
    tiles = [ExampleTile(224 * i, 448, 20.0 - i, rng.integers(0, 255, (64, 64, 3), np.uint8)) for i in range(6)]
    overview = rng.integers(150, 255, (120, 300, 3), np.uint8)
    examples = [
        Example("S1", classes[-1], 0.98, 0, True, tiles, overview),
        Example("S2", classes[0], 0.93, 1, False, [ExampleTile(0, 0, 3.0)], None, "The slide file was not found."),
    ]
    curve = np.exp(-np.arange(20) / 6)
    curves = [TrainingCurve(f"fold {i}", list(curve * 0.7), list(curve * 0.5 + 0.2 + i / 50), 12) for i in range(5)]
    return ReportInput(
        _metrics(rows, classes, **changes), rows, curves, examples,
        "wsi-dino mil --run . --labels ../labels.csv --task bcnb-er --folds 5", "In the folder of this run:",
        {"seed": "0"}, {"learning rate": "0.0002"}, {"licence": "DINOv3 License"},
    )  # fmt: skip


class _Reader(HTMLParser):
    """Collects the visible text, the tags and every address that a browser would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_needs_nothing_from_outside() -> None:
    page = render_report(_content())
    reader = _Reader(page)
    assert reader.addresses
    assert all(address.startswith(("data:image/", "#")) for address in reader.addresses)
    assert not reader.tags & {"script", "link", "iframe", "object", "embed"}
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)
    assert len(reader.ids) == len(set(reader.ids))


def test_same_content_gives_the_same_bytes() -> None:
    assert render_report(_content()) == render_report(_content())


def test_hostile_text_is_shown_not_run() -> None:
    classes = ["Negative", HOSTILE]
    rows = _predictions(40, 1.0, classes)
    rows[0]["slide_id"] = HOSTILE
    changes = {"task": HOSTILE, "exclusions": [{"slide_id": HOSTILE, "reason": HOSTILE, "detail": HOSTILE}]}
    page = render_report(_content(rows, classes, **changes))
    assert "script" not in _Reader(page).tags
    assert "<script" not in page
    assert HOSTILE in _Reader(page).text


@pytest.mark.parametrize(
    ("low", "high", "tone"), [(0.51, 0.9, "good"), (0.5, 0.9, "doubt"), (0.3, 0.6, "doubt"), (0.2, 0.49, "bad")]
)
def test_verdict_follows_the_interval(low: float, high: float, tone: str) -> None:
    assert verdict({"value": (low + high) / 2, "low": low, "high": high}, CLASSES)["tone"] == tone


def test_verdict_without_a_figure_is_no_answer() -> None:
    assert verdict({"value": float("nan"), "low": None, "high": None}, CLASSES)["headline"] == "No answer."


def test_answer_stands_before_everything_else() -> None:
    text = _Reader(render_report(_content())).text
    assert text.index("AUC 0.810") < text.index("Results of each fold")
    assert "95 % interval 0.740 to 0.880" in text
    assert "Only 50 patients" in text
    assert "wsi-dino mil --run ." in text
    assert "DINOv3 License" in text


def test_confusion_counts_every_row_once() -> None:
    rows = _predictions(100, 1.0, CLASSES)
    table = confusion_table(rows, CLASSES)
    for index, name in enumerate(CLASSES):
        assert sum(cell["count"] for cell in table[index]["cells"]) == sum(row["target"] == name for row in rows)
    right = sum(row["target"] == row["predicted"] for row in rows)
    assert sum(cell["count"] for row in table for cell in row["cells"] if cell["hit"]) == right


def test_three_classes_have_a_curve_each() -> None:
    classes = ["N0", "N+(1-2)", "N+(>2)"]
    text = _Reader(render_report(_content(_predictions(90, 1.5, classes), classes))).text
    for name in classes:
        assert re.search(re.escape(name) + r": 0\.\d{3}", text)


def test_missing_pieces_are_said_not_fatal() -> None:
    rows = [row for row in _predictions(40, 1.0, CLASSES) if row["label"] == 1]
    nothing = {"value": None, "low": None, "high": None, "std": None}
    metrics = _metrics(rows, CLASSES, summary={"auc": nothing}, exclusions=[], warnings=[])
    metrics["folds"] = [{"fold": 0, "n_train": 1, "n_val": 1, "n_test": 1, "threshold": None, "auc": None}]
    text = _Reader(render_report(ReportInput(metrics, rows))).text
    assert "No answer." in text
    assert "every labelled slide was used" in text
