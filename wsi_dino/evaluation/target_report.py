"""What the report says of a target that is not one class: its question, its answer, its own section."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsi_dino.evaluation.pictures import Picture
from wsi_dino.evaluation.target_pictures import calibration_picture, label_picture, scatter_picture, survival_picture


@dataclass(frozen=True)
class Headline:
    """The figure to look at first.

    Attributes:
        key: its name in the summary.
        title: its name for people.
        chance: what guessing gives.
    """

    key: str
    title: str
    chance: float


HEADLINES = {
    "classes": Headline("auc", "AUC", 0.5),
    "labels": Headline("auc", "macro AUC", 0.5),
    "regression": Headline("r2", "R²", 0.0),
    "survival": Headline("c_index", "C-index", 0.5),
}
TITLES = {"auc": "macro AUC", "c_index": "C-index", "r2": "R²", "mae": "MAE", "rmse": "RMSE", "pearson": "Pearson's r",
          "spearman": "Spearman's ρ"}  # fmt: skip

_TEMPLATES = {
    "survival": """
<h2>Do risk groups differ?</h2>
<div class="pair">
<figure>{{ figures.survival }}<figcaption>Kaplan-Meier curves of held-out patients with 95 % bands.
{{ section.cut }}</figcaption></figure>
<div>
<p>Log-rank test between the groups: p {{ p }}.</p>
<div class="scroll"><table>
<thead><tr><th class="text">group</th><th>patients</th><th>events</th><th>median {{ columns[0] }}</th></tr></thead>
<tbody>{% for group in section.groups %}<tr><td class="text">{{ group.name }}</td><td>{{ group.n }}</td>
<td>{{ group.n_events }}</td><td>{{ group.median | plain }}</td></tr>{% endfor %}</tbody></table></div>
<p class="muted">A median that is not reached is shown as –. The log-rank test pools patients whom different models
scored, and tells nothing of how well single patients are told apart: that is the C-index.</p>
</div>
</div>
<h2>Can predicted survival be believed?</h2>
<div class="pair">
<figure>{{ figures.calibration }}<figcaption>Survival at {{ columns[0] }} = {{ section.horizon | plain }}, predicted and
observed, in {{ section.calibration.method }}. A well calibrated model lies on the diagonal.</figcaption></figure>
<div>
<dl><dt>Brier score at {{ section.horizon | plain }}</dt><dd>{{ section.calibration.brier.value | number }}
({{ section.calibration.brier.low | number }} to {{ section.calibration.brier.high | number }}), weighted for censoring;
one Kaplan-Meier curve for everybody would give {{ section.calibration.brier.of_kaplan_meier | number }}</dd></dl>
<div class="scroll"><table>
<thead><tr><th>patients</th><th>events by then</th><th>predicted</th><th>observed</th></tr></thead>
<tbody>{% for row in section.calibration.groups %}<tr><td>{{ row.n }}</td><td>{{ row.n_events }}</td>
<td>{{ row.predicted | number }}</td><td>{{ row.observed | number }}{% if row.observed is not none %}
<span class="interval">{{ row.low | number }} to {{ row.high | number }}</span>{% endif %}</td></tr>
{% endfor %}</tbody></table></div>
</div>
</div>
""",
    "regression": """
<h2>Predicted and true values</h2>
<div class="pair">
<figure>{{ figures.scatter }}<figcaption>Held-out slides of all folds; on the dashed line the prediction is exact.
</figcaption></figure>
<div><dl>
<dt>MAE, RMSE</dt><dd>mean and root mean square error, in the unit of {{ columns[0] }}</dd>
<dt>R²</dt><dd>1 is perfect; 0 is what always saying the mean of the tested slides gives; it can be below</dd>
<dt>Pearson, Spearman</dt><dd>correlation of values and of ranks: blind to a wrong scale</dd>
</dl></div>
</div>
""",
    "labels": """
<h2>Each label</h2>
<div class="pair">
<figure>{{ figures.labels }}<figcaption>AUC of each label with its 95 % interval; chance is 0.5.</figcaption></figure>
<div><div class="scroll"><table>
<thead><tr><th class="text">label</th><th class="text">counts as positive</th><th>slides</th><th>of them positive</th>
<th>AUC</th><th>folds</th></tr></thead>
<tbody>{% for row in section %}<tr><td class="text">{{ row.name }}</td><td class="text">{{ row.positive }}</td>
<td>{{ row.n_known }}</td><td>{{ row.n_positive }}</td><td>{{ row.auc.value | number }}
<span class="interval">{{ row.auc.low | number }} to {{ row.auc.high | number }}</span></td>
<td>{{ row.n_folds }}</td></tr>
{% endfor %}</tbody></table></div>
<p class="muted">Held-out slides whose label is known, and folds that test both values of it. The macro average at the
top is the mean over labels.</p></div>
</div>
""",
}


@dataclass(frozen=True)
class TargetPart:
    """What one kind of target puts into the report.

    Attributes:
        question: what the report answers, after "Does ENCODER predict TASK".
        headline: figure at the top.
        verdict: ``tone``, ``headline`` and ``meaning``.
        pictures: drawn in the page, and to be saved.
        body: the section, as safe HTML.
        columns: of the table of predictions.
        headline_score: what slides are ranked by.
    """

    question: str
    headline: Headline
    verdict: dict[str, str]
    pictures: tuple[Picture, ...]
    body: Any
    columns: tuple[str, ...]
    headline_score: str


def target_part(metrics: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> TargetPart:
    """Return the part of a report on survival, a number or several labels.

    Args:
        metrics: the content of metrics.json.
        predictions: rows of the test subset.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    kind, columns, section = metrics["kind"], metrics["columns"], metrics[metrics["kind"]]
    pictures = _pictures(metrics, predictions)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": _number, "plain": _plain}
    figures = {picture.name: Markup(picture.page_svg()) for picture in pictures}
    p = _p(section["log_rank_p"]) if kind == "survival" else ""
    body = environment.from_string(_TEMPLATES[kind]).render(section=section, columns=columns, figures=figures, p=p)
    headline = HEADLINES[kind]
    shown = tuple(name for name in (predictions[0] if predictions else {}) if name != "subset")
    return TargetPart(
        ", ".join(columns), headline, verdict(kind, metrics["summary"][headline.key]), tuple(pictures), Markup(body),
        tuple(name for name in shown if name != "target"), _RANKED_BY[kind],
    )  # fmt: skip


def _pictures(metrics: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> list[Picture]:
    kind, columns = metrics["kind"], metrics["columns"]
    if kind == "survival":
        return [survival_picture(metrics["survival"], columns[0]), calibration_picture(metrics["survival"], columns[0])]
    if kind == "labels":
        return [label_picture(metrics["labels"], metrics["summary"]["auc"])]
    points = [(float(row["value"]), float(row["predicted"])) for row in predictions]
    return [scatter_picture(points, columns[0])]


def verdict(kind: str, figure: Mapping[str, Any]) -> dict[str, str]:
    """Say in words what the figure to look at means with its interval.

    Examples:
        >>> verdict("survival", {"value": 0.7, "low": 0.61, "high": 0.78})["headline"]
        'Yes, better than chance.'
        >>> verdict("regression", {"value": 0.1, "low": -0.2, "high": 0.3})["tone"]
        'doubt'
    """
    headline = HEADLINES[kind]
    known = [figure.get(name) for name in ("value", "low", "high")]
    if any(number is None or not math.isfinite(number) for number in known):
        missing = f"The {headline.title} could not be computed; see below why."
        return {"tone": "doubt", "headline": "No answer.", "meaning": missing}
    value, low, high = (float(number) for number in known if number is not None)
    meaning = _MEANINGS[kind](value)
    if low > headline.chance:
        yes = "Yes, better than always saying the mean." if kind == "regression" else "Yes, better than chance."
        return {"tone": "good", "headline": yes, "meaning": meaning}
    if high < headline.chance:
        reason = "That is worse than guessing by more than luck explains: look for a leak, or train longer."
        return {"tone": "bad", "headline": "No: worse than chance.", "meaning": f"{meaning} {reason}"}
    reason = f"The interval holds {headline.chance:g}, which is what guessing gives: these slides do not show it."
    return {"tone": "doubt", "headline": "Not shown.", "meaning": f"{meaning} {reason}"}


_RANKED_BY = {"survival": "risk", "regression": "predicted value", "labels": "score of the first label"}
_MEANINGS = {
    "survival": lambda value: (
        f"Of 100 pairs of patients of whom it is known who had the event sooner, that one has the higher risk in about "
        f"{round(100 * value)} (guessing: 50)."
    ),
    "regression": lambda value: (
        f"The squared error is {100 * (1 - value):.0f} % of what always saying the mean of the tested slides gives."
    ),
    "labels": lambda value: (
        f"Of 100 random pairs, a slide with a label gets a higher score for it than one without in about "
        f"{round(100 * value)}, averaged over labels (guessing: 50)."
    ),
}


def _p(value: float | None) -> str:
    if value is None:
        return "not known (one group, or nobody had the event)"
    return "< 0.0001" if value < 1e-4 else f"= {value:.4f}"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and math.isfinite(value) else "–"


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and math.isfinite(value) else "–"
