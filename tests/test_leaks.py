"""What would leak in a table is said, and what is right is not."""

from __future__ import annotations

from wsi_dino.evaluation.leaks import duplicate_findings, table_findings
from wsi_dino.evaluation.near_duplicates import NearDuplicate


def _row(slide: str, patient: str, **more: str) -> dict[str, str]:
    return {"slide_id": slide, "patient_id": patient, **more}


def test_clean_table_has_no_finding() -> None:
    rows = [_row(f"S{i}", f"P{i // 2}", ER=["neg", "pos"][i // 2 % 2], official="train") for i in range(8)]
    assert table_findings(rows) == []


def test_each_fault_is_found_by_kind() -> None:
    rows = [
        _row("S1", "P1", ER="neg", official="train", centre="0"),
        _row("S1", "P1", ER="pos", official="train", centre="0"),
        _row("S2", "P2", ER="neg", official="train", centre="0"),
        _row("S3", "P2", ER="neg", official="test", centre="1"),
        _row("s3", "P3", ER="neg", official="test", centre="1"),
        _row("S4", "P4", ER="", official="test", centre="1"),
    ]
    found = {finding.kind: finding for finding in table_findings(rows)}
    assert "contradict each other in ER" in found["slide in several rows"].text
    assert found["slide ids alike"].slides == (("S3", "s3"),)
    assert found["patient on two sides"].is_grave
    assert "P2" in found["patient on two sides"].text
    assert "P2" in found["patient of two centres"].text
    assert not found["patient with several labels"].is_grave
    assert "P1" in found["patient with several labels"].text


def test_duplicates_are_grave_between_patients_and_folds_are_counted() -> None:
    patient_of = {"a": "P1", "b": "P2", "c": "P3", "d": "P3", "e": "P4"}
    label_of = {"a": "neg", "b": "pos", "c": "neg", "d": "neg", "e": "neg"}
    near = [NearDuplicate("a", "b", 3, 0.99), NearDuplicate("c", "d", 3, 0.99), NearDuplicate("a", "gone", 0, 1.0)]
    sides = [{"P1": "train", "P2": "test"}, {"P1": "val", "P2": "train"}, {"P1": "test", "P2": "test"}]
    found = duplicate_findings(near, {"c": "x", "e": "x", "a": "y"}, patient_of, label_of, sides)
    pictures = [finding for finding in found if finding.kind == "near-duplicate pictures"]
    assert [(finding.slides, finding.is_grave) for finding in pictures] == [
        ((("a", "b"),), True),
        ((("c", "d"),), False),
    ]
    assert "1 pair with different labels" in pictures[0].text
    assert "In 1 of 3 folds" in pictures[0].text
    (features,) = [finding for finding in found if finding.kind == "identical features"]
    assert features.slides == (("c", "e"),)
    assert "In 0 of 3 folds" in features.text
