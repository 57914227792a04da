"""All code of the documentation runs. A page with code that nobody runs fails here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from page_code import read_blocks, run_page
from page_stages import STAGES, Stage
from toy_features import SMALL, make_run

_REPOSITORY = Path(__file__).resolve().parent.parent
_ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data_splits/README.md", "benchmarks/README.md")
_ALL = [*_ROOT_PAGES, *sorted(p.relative_to(_REPOSITORY).as_posix() for p in (_REPOSITORY / "docs").rglob("*.md"))]

# pages whose code is run, and more than run, by a test of their own
_ELSEWHERE = {
    "docs/add-a-metric.md": "test_docs_code.py",
    "docs/add-an-encoder.md": "test_add_an_encoder.py",
    "docs/em.md": "test_cli_em.py",
    "docs/looking.md": "test_docs_looking.py",
    "docs/paper.md": "test_paper_run.py",
    "docs/radiology.md": "test_docs_radiology_chest.py",
    "docs/radiology-ct.md": "test_docs_radiology_ct.py",
    "docs/scale.md": "test_docs_scale.py",
    "docs/segmentation.md": "test_docs_segmentation.py",
    "docs/targets.md": "test_docs_targets.py",
    "docs/weights.md": "test_docs_weights.py",
}


def _has_code(page: str) -> bool:
    return any(block.is_code for block in read_blocks(_REPOSITORY / page))


_RUN_HERE = [page for page in _ALL if _has_code(page) and page not in _ELSEWHERE]


def _parameters() -> list[object]:
    slow = {page for page in _RUN_HERE if "tutorials/" in page or STAGES.get(page, Stage()).is_slow}
    return [pytest.param(page, marks=[pytest.mark.slow] if page in slow else []) for page in _RUN_HERE]


@pytest.mark.parametrize("page", _parameters())
def test_the_code_of_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage = STAGES.get(page, Stage())
    stage.prepare(tmp_path)
    run_page(_REPOSITORY / page, tmp_path, names=stage.names, more=stage.more, kinds=stage.kinds)


_RESTS = {page: stage.rest for page, stage in STAGES.items() if stage.kinds}


@pytest.mark.parametrize(("page", "test"), sorted({**_ELSEWHERE, **_RESTS}.items()))
def test_a_page_said_to_be_run_elsewhere_is(page: str, test: str) -> None:
    text = (Path(__file__).parent / test).read_text(encoding="utf-8")
    assert Path(page).name in text
    assert re.search(r"run_command\(|run_page\(|exec\(", text)


def test_a_block_that_is_not_run_says_why() -> None:
    for page in _ALL:
        text = (_REPOSITORY / page).read_text(encoding="utf-8")
        reasons = re.findall(r"<!--.*?-->", text, re.DOTALL)
        assert all(re.fullmatch(r"<!-- not run: [^>]{10,} -->", reason) for reason in reasons), (page, reasons)
        marked = sum(block.not_run is not None for block in read_blocks(_REPOSITORY / page))
        assert marked == len(reasons), f"{page}: a marker is not right before its block"


def test_every_block_with_code_names_a_language() -> None:
    """`sh`, `python` and not `py`: what has another name would be passed over. Scripts (`bash`) have their own test."""
    for page in _ALL:
        kinds = {block.kind for block in read_blocks(_REPOSITORY / page)} - ({"bash"} if page in _ELSEWHERE else set())
        assert kinds <= {"sh", "python", "yaml", "toml", "json", "text", ""}, page
        unnamed = [block.text for block in read_blocks(_REPOSITORY / page) if not block.kind]
        assert not [text for text in unnamed if text.startswith(("wsi-dino ", "$ ", "import ", "from "))], page


def test_a_metric_added_as_its_page_says_has_its_interval_and_its_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from sklearn.metrics import log_loss, matthews_corrcoef

    from wsi_dino.evaluation.task_result import read_result

    monkeypatch.chdir(tmp_path)
    make_run(tmp_path, 24)
    session = run_page(_REPOSITORY / "docs/add-a-metric.md", tmp_path, more={"mil": SMALL})
    results = tmp_path / "run/mil/ER/toy"
    metrics, folds = json.loads((results / "metrics.json").read_text()), read_result(results).folds
    for name, theirs in (
        ("matthews", lambda f: matthews_corrcoef(f.y_true, f.scores >= f.threshold)),
        ("log_loss", lambda f: log_loss(f.y_true, f.scores)),
    ):
        assert [fold[name] for fold in metrics["folds"]] == pytest.approx([theirs(fold) for fold in folds])
        summary = metrics["summary"][name]
        assert summary["low"] <= summary["value"] <= summary["high"]
    report = (results / "report.html").read_text(encoding="utf-8")
    assert "<th>Matthews</th><th>log loss (lower is better)</th>" in report
    assert [ran.code for _, ran in session.ran] == [0, 0]
