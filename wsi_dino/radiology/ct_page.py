"""What the report of a CT run tells beside its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wsi_dino.evaluation.radiology_report import PagePicture, RadiologyPage, render_radiology
from wsi_dino.radiology.adapted_files import adaptation_facts
from wsi_dino.radiology.ct_folds import ProbedFolds


def render_ct_page(
    metrics: Mapping[str, Any], probed: ProbedFolds, pictures: Sequence[PagePicture], command: str
) -> str:
    """Return report.html of the content of metrics.json."""
    task = f" ({metrics['task']})" if metrics["task"] else ""
    title = (
        f"{metrics['dataset']}{task} from {metrics['encoder']} at {metrics['input_px']} px, "
        f"{metrics['protocol']['pool']} of slices, {metrics['protocol']['model']}"
    )
    return render_radiology(RadiologyPage(metrics, probed.folds, title, "volumes", _facts(metrics), pictures, command))


def _facts(metrics: Mapping[str, Any]) -> dict[str, str]:
    protocol, volumes, made = metrics["protocol"], metrics["images"], metrics["provenance"]
    counts = [", ".join(f"{name} {fold[name]['volumes']} of {fold[name]['patients']} patients" for name in fold)
              for fold in protocol["folds"]]  # fmt: skip
    states = ", ".join(f"{n} {state}" for state, n in volumes["hu"].items())
    return {
        "volumes": f"{volumes['used']} of {volumes['in_table']} in the table, {volumes['patients']} patients, "
        f"{volumes['slices']} slices; {volumes['failed']} could not be read; {volumes['not_in_table']} files are not "
        "in the table",
        "Hounsfield units": f"rescale {states} (volumes.csv tells why of each)",
        "split": f"{protocol['split']}; {'; '.join(counts)}; {protocol['validation']}",
        "shown to the encoder": f"{protocol['view_in_words']}, at {metrics['input_px']} px; {protocol['slices']}",
        "encoder": f"{metrics['encoder']}, {made['embed_dim']} features, token: {protocol['token']}, "
        f"weights {str(made['weights_sha256'])[:16]} ({made['weights_source']}), {made['precision']}",
        **adaptation_facts(protocol["adaptation"]),
        "vector of a volume": f"{protocol['pool']} over its slices",
        protocol["model"]: "; ".join(f"{key} {value}" for key, value in protocol["probe"].items()),
        "chosen in each fold": "; ".join(_chosen(facts) for facts in protocol["chosen"]),
        "the paper gives": ", ".join(protocol["given_by_the_paper"]),
        "the paper does not give": ", ".join(protocol["not_given_by_the_paper"]),
        "licence of the encoder": str(made["record"]["licence"]),
    }


def _chosen(facts: Mapping[str, Any]) -> str:
    if facts["model"] == "k-NN":
        return f"k {facts['k']}, {facts['metric']}, {facts['weighting']}, among {facts['bank']}"
    if "kept_epoch" in facts:
        return f"epoch {facts['kept_epoch']}"
    return f"C {facts['check_c']:g} of logistic regression"
