"""What the report of a chest X-ray run tells beside its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wsi_dino.evaluation.label_evaluation import FoldScores
from wsi_dino.evaluation.radiology_report import PagePicture, RadiologyPage, render_radiology
from wsi_dino.radiology.adapted_files import adaptation_facts


def render_chest_page(
    metrics: Mapping[str, Any], folds: Sequence[FoldScores], pictures: Sequence[PagePicture], command: str
) -> str:
    """Return report.html of the content of metrics.json."""
    task = f" ({metrics['task']})" if metrics["task"] else ""
    title = f"{metrics['dataset']}{task} from {metrics['encoder']} at {metrics['input_px']} px"
    facts = _facts(metrics)
    return render_radiology(RadiologyPage(metrics, folds, title, "images", facts, pictures, command))


def _facts(metrics: Mapping[str, Any]) -> dict[str, str]:
    protocol, images, made = metrics["protocol"], metrics["images"], metrics["provenance"]
    probe, check = protocol["probe"], protocol["check"]
    sizes = [", ".join(f"{name} {fold[name]['images']}" for name in fold) for fold in protocol["folds"]]
    evaluation = protocol["evaluation"]
    return {
        "images": f"{images['used']} of {images['in_table']} in the table, {images['patients']} patients; "
        f"{images['failed']} could not be read; {images['not_in_table']} files are not in the table",
        "split": f"{protocol['split']}; images: {sizes[0] if len(sizes) == 1 else '; '.join(sizes)}",
        "shown to the encoder": protocol["view_in_words"],
        "encoder": f"{metrics['encoder']}, {made['embed_dim']} features, token: {protocol['token']}, "
        f"weights {made['weights_sha256'][:16]} ({made['weights_source']}), {made['precision']}",
        **adaptation_facts(protocol["adaptation"]),
        "linear probe": ", ".join(f"{key} {value}" for key, value in probe.items()),
        "logistic regression": f"strengths {check['c_values']}, chosen on validation: {metrics['check']['c']}",
        "thresholds": f"label by label, {evaluation['threshold']}; fixed is {evaluation['fixed_threshold']:g}",
        "bootstrap": f"{evaluation['n_resamples']} resamples of patients, seed {evaluation['seed']}",
        "the paper gives": ", ".join(protocol["given_by_the_paper"]),
        "the paper does not give": ", ".join(protocol["not_given_by_the_paper"]),
        "licence of the encoder": str(made["record"]["licence"]),
    }
