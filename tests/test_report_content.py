"""What a report tells of the encoder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wsi_dino.encoders.registry import builtin_records, get_record
from wsi_dino.mil.report_content import encoder_facts


def _material(encoder: str) -> Any:
    return SimpleNamespace(encoder=encoder, store=SimpleNamespace(provenance={}, identity={}, embed_dim=384))


@pytest.mark.parametrize("name", [record.name for record in builtin_records() if record.obligations])
def test_what_a_licence_asks_travels_into_the_report(name: str) -> None:
    facts = encoder_facts(_material(name))
    record = get_record(name)
    assert record.licence in facts["licence"]
    assert facts["what the licence asks"] == " ".join(record.obligations)


def test_a_licence_that_asks_nothing_adds_no_line() -> None:
    assert "what the licence asks" not in encoder_facts(_material("resnet50"))


def test_an_unknown_encoder_has_no_known_licence() -> None:
    assert encoder_facts(_material("somebodys"))["licence"].startswith("not known")
