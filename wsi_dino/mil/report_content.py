"""What the report of a task says, put together from its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.registry import get_record
from wsi_dino.errors import EncoderError
from wsi_dino.evaluation.report import Example, ReportInput, TrainingCurve
from wsi_dino.evaluation.target_report import target_part
from wsi_dino.mil.cross_validation import FoldResult
from wsi_dino.mil.material import Material
from wsi_dino.mil.models import get_model
from wsi_dino.mil.training import TrainingSpec

_IDENTITY_TITLES = {
    "pooling": "pooling", "input_px": "input side, px", "weights_sha256": "SHA-256 of the weights",
    "stain_norm": "stain normalisation", "store_dtype": "stored as", "precision": "computed in",
}  # fmt: skip
_MODEL_TITLES = {
    "hidden_dim": "projection to", "attention_dim": "attention dimension", "gated": "gated attention",
    "dropout": "dropout",
}  # fmt: skip
_TRAINING_TITLES = {
    "learning_rate": "learning rate", "weight_decay": "weight decay", "epochs": "epochs at most",
    "min_epochs": "epochs at least", "patience": "patience, epochs", "batch_bags": "slides a step",
    "class_balanced": "loss balanced over classes", "max_tiles": "tiles drawn of a slide", "seed": "seed",
}  # fmt: skip


@dataclass(frozen=True)
class Telling:
    """What only the caller knows: the command that gives the same again, and in which folder to type it."""

    command: str = ""
    command_place: str = ""


def report_input(
    material: Material, spec: TrainingSpec, telling: Telling, results: Sequence[FoldResult],
    metrics: Mapping[str, Any], test_rows: Sequence[Mapping[str, Any]], examples: Sequence[Example],
) -> ReportInput:  # fmt: skip
    """Bring the results of a task into the form that `render_report` takes."""
    return ReportInput(
        metrics=metrics, predictions=test_rows, part=target_part(metrics, test_rows) if "kind" in metrics else None,
        curves=[_curve(result) for result in results], examples=examples,
        command=telling.command, command_place=telling.command_place, settings=_settings(material, metrics),
        training=_training(spec, metrics) | _chosen_c(results), encoder_facts=encoder_facts(material),
    )  # fmt: skip


def _curve(result: FoldResult) -> TrainingCurve:
    losses = {name: [float(row[name]) for row in result.history] for name in ("train_loss", "val_loss")}
    return TrainingCurve(f"fold {result.fold}", losses["train_loss"], losses["val_loss"], result.best_epoch)


def _settings(material: Material, metrics: Mapping[str, Any]) -> dict[str, str]:
    protocol, provenance = metrics["protocol"], metrics["provenance"]
    settings = {"task": material.task.name, "what it asks": material.task.description}
    if material.task.threshold is not None:
        names = material.task.classes or ("", "")
        settings["cut of the target"] = f"{names[1]} at {material.task.threshold:g} and above"
    if material.task.kind == "survival":
        settings |= {"time, event": material.task.target, "survival head": material.task.survival_head}
        settings["horizon"] = f"{material.task.horizon:g}"
    settings |= {f"counts as {name}": ", ".join(values) for name, values in material.task.merge.items()}
    settings |= {f"only where {column}": " or ".join(kept) for column, kept in material.task.scheme.keep.items()}
    settings |= {f"tested where {column}": " or ".join(kept) for column, kept in material.task.scheme.test_keep.items()}
    settings |= {
        "split": protocol["split_scheme"],
        "fingerprint of the split": provenance["split"],
        "fingerprint of the features": provenance["features"],
        "fingerprint of everything": provenance["fingerprint"],
        "device": protocol["device"],
    }
    return {key: value for key, value in settings.items() if value}


def _training(spec: TrainingSpec, metrics: Mapping[str, Any]) -> dict[str, str]:
    values = spec.model_dump()
    record = get_model(spec.model)
    own = {_MODEL_TITLES.get(name, name.replace("_", " ")): _word(v) for name, v in spec.hyperparameters.items()}
    recipe = {} if record.is_convex else _TRAINING_TITLES
    told = own | {title: _word(values[name]) for name, title in recipe.items() if values[name] is not None}
    how = {name.replace("_", " "): _word(value) for name, value in (metrics.get("adaptation") or {}).items()}
    precision = ", ".join(metrics["protocol"]["precision"])
    model = {"model": record.title, "model from": record.paper, "score of a tile": record.tile_score}
    return {**model, **told, "precision": precision, **how, **_searched(metrics.get("search"))}


def _chosen_c(results: Sequence[FoldResult]) -> dict[str, str]:
    """Tell the penalty of a linear probe, which takes the place of epochs."""
    chosen = {r.fold: r.history[r.best_epoch]["c"] for r in results if "c" in r.history[r.best_epoch]}
    told = {f"fold {fold}": f"c = {c:g}" for fold, c in chosen.items()}
    return {"an epoch of the curve": "one strength of the penalty, the strongest first", **told} if told else {}


def _searched(search: Mapping[str, Any] | None) -> dict[str, str]:
    """Tell what a search tried and what each fold chose; the rows above are what stood there without it."""
    if not search:
        return {}
    told = {f"searched: {name}": text for name, text in search["space"].items()}
    for fold in search["folds"]:
        chosen = ", ".join(f"{name} {_rounded(value)}" for name, value in fold["chosen"].items())
        losses = f"validation loss {fold['val_loss']:.3f} (without search {_rounded(fold['val_loss_without'])})"
        told[f"fold {fold['fold']} chose"] = f"{chosen}; {losses}, {fold['n_trials']} trials"
    return told


def _rounded(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value}"


def encoder_facts(material: Material) -> dict[str, str]:
    """Return what is known of the encoder: its record, and what the feature files say of their making."""
    facts = {"encoder": material.encoder, **_from_record(_record_of(material))}
    stated = {**material.store.provenance, **material.store.identity}
    facts["values a tile"] = str(material.store.embed_dim)
    facts |= {title: str(stated[key]) for key, title in _IDENTITY_TITLES.items() if stated.get(key) is not None}
    facts |= _from_tiling(stated.get("tiling") or {})
    if stated.get("imported"):
        facts["made by"] = "another program; only what its files say is known"
    return facts


def _record_of(material: Material) -> EncoderSpec | None:
    adapted = material.store.provenance.get("record") if material.store.identity.get("adapter") else None
    try:
        return EncoderSpec.model_validate(adapted) if adapted else get_record(material.encoder)
    except ValidationError:  # the record of another version
        return None
    except EncoderError:
        return None


def _from_record(record: EncoderSpec | None) -> dict[str, str]:
    if record is None:
        return {"licence": "not known: this package has no record of the encoder"}
    facts = {
        "licence": f"{record.licence} {record.licence_url}".strip() + (" (gated)" if record.gated else ""),
        "what the licence asks": " ".join(record.obligations),
        "source": record.source + (f" at {record.revision}" if record.revision else ""),
        "architecture": record.architecture,
        "parameters": "" if record.parameters_m is None else f"{record.parameters_m:g} million",
        "trained on": record.training_data,
        "note": record.notes,
    }
    return {key: value for key, value in facts.items() if value}


def _from_tiling(tiling: Mapping[str, Any]) -> dict[str, str]:
    facts = {"tile side, px": tiling.get("tile_px"), "resolution asked, um/px": tiling.get("mpp_asked")}
    return {key: str(value) for key, value in facts.items() if value is not None}
