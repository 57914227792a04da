"""docs/mil-models.md: its table is that of the records, its model keeps the contract, its settings are taken."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_mil_models as contract
import yaml
from command_line import run_command
from toy_features import make_run

from wsi_dino.mil import models
from wsi_dino.mil.models import get_model, model_names

_PAGE = (Path(__file__).resolve().parent.parent / "docs/mil-models.md").read_text(encoding="utf-8")
_QUICK = ("--epochs", 1, "--min-epochs", 1, "--folds", 2, "--bootstrap", 100, "--no-report", "--json")
_BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", _PAGE, re.DOTALL | re.MULTILINE)


def _rows() -> dict[str, list[str]]:
    table = [line.strip("| ").split(" | ") for line in _PAGE.splitlines() if re.match(r"\| `[a-z]", line)]
    return {row[0].strip("`"): row for row in table}


def test_every_model_is_in_the_table() -> None:
    assert list(_rows()) == list(model_names())


@pytest.mark.parametrize("name", model_names())
def test_hyperparameters_and_paper_of_the_table_are_those_of_the_record(name: str) -> None:
    record, row = get_model(name), _rows()[name]
    told = dict(re.findall(r"`(\w+)` ([\w.-]+)", row[2]))
    assert told == {key: str(value).lower() for key, value in record.hyperparameters().model_dump().items()}
    for link in re.findall(r"https://\S+?(?=\))", row[1]):
        assert link in record.paper


def test_settings_of_the_page_are_taken(tmp_path: Path) -> None:
    make_run(tmp_path, 12)
    (block,) = [text for kind, text in _BLOCKS if kind == "yaml"]
    (tmp_path / "wsi-dino.yaml").write_text("run: run\nlabels: labels.csv\n" + block)
    ran = run_command(tmp_path, "mil", "--target", "ER", *_QUICK)
    assert ran.code == 0, ran.stderr
    wanted = yaml.safe_load(block)["mil"]
    options = ran.json["protocol"]["training"]["options"]
    assert (ran.json["model"], options["hidden_dim"]) == (wanted["model"], wanted["hidden_dim"])
    assert {key: options[key] for key in wanted["set"]} == wanted["set"]


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The model of the page, as a file of the folder of models would be."""
    (block,) = [text for kind, text in _BLOCKS if kind == "python"]
    name = re.match(r"# (\w+)\.py\n", block)[1]  # type: ignore[index]
    (tmp_path / f"{name}.py").write_text(block)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    model_names.cache_clear()
    yield name.replace("_", "-")
    model_names.cache_clear()
    sys.modules.pop(f"wsi_dino.mil.models.{name}", None)


def test_model_of_the_page_keeps_the_contract(added: str, tmp_path: Path) -> None:
    assert added in model_names()
    contract.test_record_says_what_must_be_known(added)
    contract.test_masked_equals_unpadded(added, 3, float("nan"))
    contract.test_order_of_tiles_matters_only_where_the_record_says_so(added)
    contract.test_gradients_are_finite_and_reach_every_weight(added)
    contract.test_model_comes_back_from_disk_to_the_bit(added, tmp_path)
    contract.test_training_is_the_same_to_the_bit_whatever_the_threads(added)
    contract.test_witnesses_are_learnt_and_ranked_first(added)


def test_model_of_the_page_is_used_by_name(added: str, tmp_path: Path) -> None:
    make_run(tmp_path, 12)
    ran = run_command(
        tmp_path, "mil", "--run", "run", "--labels", "labels.csv", "--target", "ER", "--model", added,
        "--set", "k=2", *_QUICK,
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert (ran.json["model"], ran.json["protocol"]["training"]["options"]) == (added, {"k": 2})
