"""One fold as an item of work: what it depends on, what it leaves on disk, and whether that is still whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

from wsi_dino import __version__
from wsi_dino.evaluation.split import Fold, Split
from wsi_dino.evaluation.threshold import ThresholdPolicy
from wsi_dino.feature_file import FeatureFile, read_feature_file
from wsi_dino.item_queue import Item
from wsi_dino.mil.attention_file import SlideAttention, write_attention
from wsi_dino.mil.checkpoint import ModelConfig, save_model
from wsi_dino.mil.class_target import ClassTarget
from wsi_dino.mil.cross_validation import FoldResult, fold_spec, plan_fold, run_fold
from wsi_dino.mil.inference import score_slides
from wsi_dino.mil.material import Material
from wsi_dino.mil.models import get_model, model_source, result_name
from wsi_dino.mil.objective import AnyObjective
from wsi_dino.mil.search import Found, SearchGround, SearchSpec, search_fold, search_space, with_values
from wsi_dino.mil.training import TrainedFold, TrainingSpec
from wsi_dino.provenance import environment, file_sha256, fingerprint

# Modules that tell of results, or learn an adapter before, and not the model: a change in them leaves finished
# folds as they are.
_TELLING = (
    "adaptation", "adapted_run", "centre_section", "classic_bench", "classic_network", "examples", "faithfulness",
    "finished_task", "leak_check", "looking",
    "material", "metrics_file", "permuted_labels", "prediction", "report_content", "run", "statistics_section",
    "target_sections", "task_labels", "tasks", "tile_probability", "top_tiles",
)  # fmt: skip


@dataclass(frozen=True)
class Learning:
    """How every fold is learnt.

    Attributes:
        spec: architecture and recipe.
        threshold_policy: see `choose_threshold`.
        device: where to train: ``cpu``, ``cuda`` or ``mps``.
        threads: lanes on a CPU; None = all cores.
        search: how hyper-parameters are searched in each fold; None = they stay as `spec` has them.
    """

    spec: TrainingSpec
    threshold_policy: ThresholdPolicy
    device: str = "cpu"
    threads: int | None = None
    search: SearchSpec | None = None

    @property
    def n_trainings(self) -> int:
        """Trainings of each fold."""
        return 1 + (self.search.n_trials if self.search else 0)

    def search_space(self) -> dict[str, str]:
        """Return what is searched, in words, by name."""
        return {
            name: str(each) for name, each in search_space(self.spec, self.search.fixed if self.search else ()).items()
        }

    def result_name(self, encoder: str) -> str:
        """Return the name of the results from an encoder's features, see `models.result_name`."""
        return result_name(encoder, self.spec.model)


@lru_cache
def code_fingerprint(model: str) -> str:
    """Return what changes with the code that learns, so that results of other code are never taken for its own.

    Args:
        model: its name; the files of other models do not count.
    """
    room = resources.files("wsi_dino.mil")
    files = [*room.iterdir(), *room.joinpath("layers").iterdir()]
    learning = [file for file in files if file.name.endswith(".py") and file.name.removesuffix(".py") not in _TELLING]
    texts = sorted((file.name, file.read_text(encoding="utf-8")) for file in learning)
    return fingerprint(__version__, texts, model_source(model))


def fold_item(material: Material, fold: Fold, number: int, learning: Learning) -> Item:
    """Return the fold with the fingerprint of all that can change its result."""
    rows = [(row.slide_id, row.patient_id, row.target, row.label, row.values) for row in material.cohort.rows]
    content = fingerprint(
        code_fingerprint(learning.spec.model), rows, material.cohort.class_names, material.task.target,
        dict(material.features_fingerprint), material.store.identity, fold.train, fold.val, fold.test, number,
        learning.spec, learning.threshold_policy, learning.device, material.target_kind,
        *([learning.search] if learning.search else []),
    )  # fmt: skip
    return Item(f"fold-{number}", content)


def fold_number(item: Item) -> int:
    """Return the number of the fold that `fold_item` made an item of."""
    return int(item.key.rpartition("-")[2])


class FoldFiles:
    """Where the folds of one task and encoder leave their files.

    Args:
        folder: ``RUN/mil/TASK/ENCODER``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, number: int) -> Path:
        """Path of a fold's weights; its config stands beside it as ``.json``."""
        return self.folder / "model" / f"fold-{number}.safetensors"

    def attention(self, number: int, slide_id: str) -> Path:
        """Path of the attention of a held-out slide."""
        return self.folder / "attention" / f"fold-{number}" / f"{slide_id}.h5"

    def search(self, number: int) -> Path:
        """Path of the trials of a fold's search."""
        return self.folder / "search" / f"fold-{number}.json"

    def is_intact(self, item: Item, row: Mapping[str, Any]) -> bool:
        """Tell whether every file that a finished fold left is as it was."""
        promised: Mapping[str, str] = row.get("files", {})
        paths = {self.folder / name: sha256 for name, sha256 in promised.items()}
        return bool(paths) and all(path.is_file() and file_sha256(path) == sha256 for path, sha256 in paths.items())

    def remove_others(self, kept: set[Path]) -> None:
        """Remove models and attention of folds and slides that this result does not have."""
        for pattern in ("model/*", "attention/*/*.h5", "search/*"):
            for path in self.folder.glob(pattern):
                if path not in kept and not path.name.startswith("."):
                    path.unlink(missing_ok=True)


def learn_fold(
    material: Material, split: Split, number: int, learning: Learning, files: FoldFiles,
    on_epoch: Callable[[dict[str, float]], None], trained: TrainedFold | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train and test one fold and write its files; `trained` has been trained already, with others.

    Returns:
        Its row: ``status``, ``result`` (`FoldResult.to_record`), ``evenness`` of attention of each held-out
        slide, the SHA-256 of each file and, of a search, ``search`` (`Found.to_record`).
    """
    found = _search(material, split.folds[number], number, learning, files, on_epoch) if learning.search else None
    if found is not None:
        learning = replace(learning, spec=with_values(learning.spec, found.values))
    result = run_fold(
        material.cohort, split.folds[number], material.store, learning.spec, fold_index=number,
        target=material.target_kind, threshold_policy=learning.threshold_policy, device=learning.device,
        threads=learning.threads, on_epoch=on_epoch, trained=trained,
    )  # fmt: skip
    written = [_save_model(material, split, result, learning, files)]
    written.append(written[0].with_suffix(".json"))
    written += [files.search(number)] if found else []
    evenness: dict[str, float] = {}
    for attention in _attend(material, split.folds[number], result, learning):
        path = files.attention(number, attention.slide_id)
        write_attention(path, attention)
        written.append(path)
        evenness[attention.slide_id] = attention.evenness
    hashes = {path.relative_to(files.folder).as_posix(): file_sha256(path) for path in written}
    told = {"search": {"fold": number, **found.to_record()}} if found else {}
    return {"status": "done", "result": result.to_record(), "evenness": evenness, "files": hashes, **told}


def _search(
    material: Material, fold: Fold, number: int, learning: Learning, files: FoldFiles,
    on_epoch: Callable[[dict[str, float]], None],
) -> Found:  # fmt: skip
    """Search on the training and validation slides; the truth of others is not handed on."""
    asked = learning.search or SearchSpec(n_trials=1)
    plan = plan_fold(
        material.cohort, fold, material.store, learning.spec, fold_index=number, target=material.target_kind,
        threshold_policy=learning.threshold_policy,
    )  # fmt: skip
    train, val = plan.slides["train"], plan.slides["val"]
    truth = {slide_id: plan.truth[slide_id] for slide_id in (*train, *val)}
    ground = SearchGround(
        plan.spec, material.store, truth, train, val, plan.objective, learning.device, learning.threads
    )  # fmt: skip
    # more trials go on from fewer
    key = fold_item(material, fold, number, replace(learning, search=asked.model_copy(update={"n_trials": 1})))
    return search_fold(ground, asked, key.fingerprint, files.search(number), on_epoch)


def _save_model(material: Material, split: Split, result: FoldResult, learning: Learning, files: FoldFiles) -> Path:
    if result.model is None:
        raise ValueError(f"fold {result.fold} came back without its model")
    config = ModelConfig(
        class_names=material.cohort.class_names if material.cohort.kind == "classes" else (),
        target=material.task.target, embed_dim=material.store.embed_dim,
        encoder=material.store.identity, spec=fold_spec(learning.spec, result.fold),
        threshold=result.threshold.value if result.threshold else None,
        threshold_policy=result.threshold.policy if result.threshold else "highest-score",
        fold=result.fold, best_epoch=result.best_epoch, precision=result.precision,
        provenance={
            "task": material.task.name, "encoder": material.encoder, "split": split.scheme,
            "split_fingerprint": split.fingerprint, "learnt_from": _learnt_from(material, split.folds[result.fold]),
            "versions": environment("scipy", "scikit-learn"),
        },
        target_kind=material.target_kind, objective=cast(AnyObjective | None, result.objective),
    )  # fmt: skip
    path = files.model(result.fold)
    save_model(path, result.model, config)
    return path


def _learnt_from(material: Material, fold: Fold) -> list[str]:
    """Return the fingerprints of the bags that weights, stopping and threshold have seen, in no telling order."""
    slides = material.cohort.slides_of((*fold.train, *fold.val))
    return sorted(material.features_fingerprint[slide_id] for slide_id in slides)


def _attend(material: Material, fold: Fold, result: FoldResult, learning: Learning) -> list[SlideAttention]:
    if result.model is None:
        return []
    slides = material.cohort.slides_of(fold.test)
    scores = score_slides(result.model, material.store, slides, device=learning.device, threads=learning.threads)
    result.model.cpu()
    attended, record = [], get_model(learning.spec.model)
    kind, said = material.target_kind, {row["slide_id"]: row for row in result.predictions}
    column = f"score_{kind.names[-1]}" if isinstance(kind, ClassTarget) else kind.score_column
    for score in scores:
        file = read_feature_file(material.paths[score.slide_id])
        place = (file.coords, tile_wh_level0(file))
        more = (record.tile_score, score.contributions)
        weights = score.attention_weights if record.has_attention else score.standard_weights
        shown = float(said[score.slide_id][column])
        attended.append(SlideAttention(score.slide_id, result.fold, shown, weights, *place, *more))
    return attended


def tile_wh_level0(file: FeatureFile) -> tuple[int, int] | None:
    """Return the footprint of a tile in level-0 px, as far as the feature file says."""
    stated = file.provenance.get("tiling", {}).get("tile_wh_level0")
    if stated:
        return int(stated[0]), int(stated[1])
    side = int(file.provenance.get("coords_attrs", {}).get("patch_size_level0", 0))
    return (side, side) if side > 0 else None
