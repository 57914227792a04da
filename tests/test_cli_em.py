"""`wsi-dino radiology em` from two volumes to a report: the example of its page, its stages, wrong use."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import run_command
from toy_neurons import drawn_neurons

from wsi_dino.run_folder import RunFolder
from wsi_dino.segmentation.neurons.curve import compare

_PAGE = (Path(__file__).resolve().parent.parent / "docs" / "em.md").read_text(encoding="utf-8")


def _commands() -> list[list[str]]:
    block = re.findall(r"```sh\n(.*?)```", _PAGE, re.DOTALL)[0]
    return [shlex.split(line)[1:] for line in block.splitlines()]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which the page's example was run, the first command with --zarr."""
    folder = tmp_path_factory.mktemp("em")
    code = re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)[0]
    exec(compile(code.replace('f"{name}.h5"', f'f"{folder}/{{name}}.h5"'), "em.md", "exec"), {})
    ran = run_command(folder, *_commands()[0], "--zarr", "--optimistic", "--json")
    assert ran.code == 0, ran.stderr
    assert set(ran.json) == {"voi_split", "voi_merge", "voi", "arand", "threshold", "curve", "best_on_test"}
    return folder


def _metrics(folder: Path, label: str = "unet3d") -> dict:
    return json.loads((folder / "run/em/volumes" / label / "metrics.json").read_text(encoding="utf-8"))


def test_figures_are_those_of_the_segmentation_that_was_written(example: Path) -> None:
    metrics, results = _metrics(example), example / "run/em/volumes/unet3d"
    with h5py.File(results / "segmentation.h5") as file, h5py.File(example / "test.h5") as test:
        found, truth = file["main"][()], test["labels"][()].astype(np.int64)
    assert found.dtype == np.uint32
    assert compare(truth, found) == pytest.approx(
        {key: metrics[key] for key in ("voi_split", "voi_merge", "voi", "arand")}
    )
    zarr = pytest.importorskip("zarr")
    np.testing.assert_array_equal(zarr.open_array(str(results / "segmentation.zarr"), mode="r")[:], found)


def test_the_threshold_is_validations_and_the_tests_own_is_only_flagged(example: Path) -> None:
    metrics = _metrics(example)
    best = min(metrics["validation_curve"], key=lambda row: row["voi"])
    assert metrics["threshold"] == best["threshold"]
    assert metrics["best_on_test"]["voi"] == min(row["voi"] for row in metrics["curve"])
    assert "test labels" in metrics["best_on_test"]["note"]
    assert len(metrics["curve"]) == 19


def test_floors_tell_what_learns_nothing(example: Path) -> None:
    floors = _metrics(example)["floors"]
    assert floors["truth-affinities"]["voi"] < 0.05
    assert floors["one-segment"]["voi_split"] == 0
    assert floors["raw-intensity"]["voi"] < floors["one-segment"]["voi"]


def test_the_same_command_again_computes_nothing_and_stages_run_alone(example: Path) -> None:
    results = example / "run/em/volumes/unet3d"
    files = [*results.rglob("*.h5"), results / "metrics.json"]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = run_command(example, *_commands()[0], "--zarr", "--optimistic", "--json")
    assert again.code == 0
    assert {path: path.stat().st_mtime_ns for path in files} == before
    early = run_command(example, *_commands()[0], "--stage", "agglomerate", "--scoring", "mean", "--as", "other")
    assert early.code == 2
    assert "affinities is not done" in early.stderr
    joined = run_command(example, *_commands()[0], "--stage", "agglomerate", "--scoring", "mean", "--json")
    assert joined.json["stage"] == "agglomerate"
    assert (results / "affinities/test.h5").stat().st_mtime_ns == before[results / "affinities/test.h5"]
    assert run_command(example, *_commands()[0], "--zarr", "--optimistic").code == 0


def test_a_file_that_was_cut_is_made_again(example: Path) -> None:
    path = example / "run/em/volumes/unet3d/fragments/test.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert run_command(example, *_commands()[0], "--zarr", "--optimistic").code == 0
    with h5py.File(path) as file:
        assert file["main"][()].min() == 1


def test_frozen_features_through_a_decoder_and_the_comparison_in_the_report(example: Path) -> None:
    ran = run_command(example, *_commands()[1], "--json")
    assert ran.code == 0, ran.stderr
    assert np.isfinite(ran.json["voi"])
    (label,) = [path.name for path in (example / "run/em/volumes").glob("efficientnet-lite0@*")]
    page = (example / "run/em/volumes" / label / "report.html").read_text(encoding="utf-8")
    assert "unet3d" in page
    assert page.count("What the encoder sees") == 1
    assert "<script" not in page
    assert not re.search(r"(src|href)=.http", page)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--upscale", "3"], "upscale"),
        (["--scoring", "median"], "quantile"),
        (["--thresholds", "a,b"], "numbers"),
        (["--thresholds", "0.5,nan"], "0 to 1"),
        (["--lr", "0"], "--lr"),
        (["--root", "."], "--dataset"),
        (["--dataset", "cremi-a"], "--root"),
        (["--test-labels", "absent.h5"], "no such file"),
        (["--val-sections", "10"], "11 sections"),
        (["--name", ""], "--name is empty"),
    ],
)
def test_wrong_use_is_told_and_ends_with_2(example: Path, changed: list[str], message: str) -> None:
    ran = run_command(example, *_commands()[0], "--run", "wrong", *changed)
    assert ran.code == 2
    assert message in ran.stderr
    assert len(ran.stderr.strip().splitlines()) <= 4
    assert not (example / "wrong" / "em").exists()


def test_labels_of_the_test_are_looked_at_before_anything_is_learnt(example: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["labels"] = np.zeros((10, 48, 48), np.uint64)
    ran = run_command(example, *_commands()[0], "--test-labels", str(tmp_path / "empty.h5"), "--as", "empty")
    assert ran.code == 2
    assert "no neuron at all" in ran.stderr
    assert "learning affinities" not in ran.stderr


def test_labels_to_learn_from_are_looked_at_before_sections_are_encoded(example: Path, tmp_path: Path) -> None:
    with h5py.File(example / "train.h5") as train, h5py.File(tmp_path / "train.h5", "w") as file:
        file["labels"] = np.where(np.arange(10)[:, None, None] < 8, 0, train["labels"][()])
    labels = ["--train-labels", str(tmp_path / "train.h5"), "--run", str(tmp_path / "run")]
    ran = run_command(example, *_commands()[1], *labels)
    assert ran.code == 2
    assert "sections 0 to 7 hold no neuron at all" in ran.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_every_step_of_windows_of_two_sections_has_a_finite_gradient(example: Path, tmp_path: Path) -> None:
    windows = ["--window-sections", "2", "--window-voxels", "16", "--steps", "30", "--device", "cpu"]
    ran = run_command(example, *_commands()[0], *windows, "--stage", "affinities", "--run", str(tmp_path))
    assert ran.code == 0, ran.stderr
    row = RunFolder(tmp_path).read_row("em/volumes/unet3d", "affinities")
    assert row is not None
    assert [epoch.get("skipped_steps", 0) for epoch in row["history"]] == [0]


def test_zarr_is_renewed_with_the_segmentation_whether_asked_for_again_or_not(example: Path) -> None:
    zarr = pytest.importorskip("zarr")
    results = example / "run/em/volumes/unet3d"

    def both() -> tuple[np.ndarray, np.ndarray]:
        with h5py.File(results / "segmentation.h5") as file:
            return file["main"][()], zarr.open_array(str(results / "segmentation.zarr"), mode="r")[:]

    before = both()[1]
    other = [*_commands()[0], "--optimistic", "--scoring", "quantile-10"]
    for _ in range(2):
        assert run_command(example, *other).code == 0
        found, renewed = both()
        np.testing.assert_array_equal(renewed, found)
        assert (renewed != before).any()
        (results / "segmentation.zarr/.zarray").unlink()
    assert run_command(example, *_commands()[0], "--zarr", "--optimistic").code == 0
    np.testing.assert_array_equal(both()[1], before)


def test_a_published_dataset_stands_beside_the_papers_rows(tmp_path: Path) -> None:
    grey, ids = drawn_neurons((30, 24, 32))
    for name in ("wafer4_inputs.h5", "wafer4_labels.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["main"] = grey if "inputs" in name else ids.astype(np.uint64)
    options = shlex.split("--dataset wafer4 --root . --steps 6 --window-sections 4 --window-voxels 24 --no-floors")
    ran = run_command(tmp_path, "radiology", "em", "--encoder", "unet3d", *options)
    assert ran.code == 0, ran.stderr
    (page,) = (text.read_text(encoding="utf-8") for text in tmp_path.rglob("report.html"))
    assert "What the paper prints: Table 9" in page
    row = page[page.index("DINOv3-L") :].split("</tr>")[0]
    assert re.findall(r"<td>([^<]*)</td>", row) == ["2.061", "0.568", "2.629", "0.115"]
