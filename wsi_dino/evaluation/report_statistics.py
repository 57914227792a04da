"""The part of a task's report on averages, DeLong's interval, selective prediction and decisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wsi_dino.evaluation.plots import coverage_figure, decision_figure
from wsi_dino.evaluation.published import published_section

_TEMPLATE = """
{% if averages %}
<h2>Both ways of averaging</h2>
<p>Precision and recall of the positive class and their mean over classes (macro) are different figures, and published
tables do not always say which they print. Quote one of these by its name.</p>
<div class="scroll"><table>
<thead><tr><th class="text">average</th>{% for name in averaged %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for title, figures in averages %}<tr><td class="text">{{ title }}</td>
{% for figure in figures %}<td>{{ figure.value | number }}
<span class="interval">{{ figure.low | number }} to {{ figure.high | number }}</span></td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endif %}
{% for table in published %}
<h3>As published: {{ table.table }} of {{ table.source }}</h3>
<p>The paper's figures, not reproduced here. Accuracy, precision and recall together tell which average a row can be on
{{ table.test_set }} (a share of {{ table.rows[0].prevalence | number }}).</p>
<div class="scroll"><table>
<thead><tr><th class="text">encoder</th><th>AUC</th><th>accuracy</th><th>precision</th><th>recall</th>
<th>implied share of positives</th><th class="text">precision and recall can be of</th></tr></thead>
<tbody>{% for row in table.rows %}<tr><td class="text">{{ row.label }}</td><td>{{ row.auc | number }}</td>
<td>{{ row.accuracy | number }}</td><td>{{ row.precision | number }}</td><td>{{ row.recall | number }}</td>
<td>{{ row.implied_prevalence.value | number }}</td><td class="text">{{ row.can_be }}</td></tr>
{% endfor %}</tbody></table></div>
{% endfor %}
{% if delong %}
<p>AUC by DeLong: {{ delong.auc.value | number }}{% if delong.auc.low is not none %}, 95 % interval
{{ delong.auc.low | number }} to {{ delong.auc.high | number }} ({{ delong.auc.scale }} scale){% endif %}
&#32;<span class="muted">Unit: {{ delong.unit }}; {{ delong.averaged }}.
{% if delong.auc.note %}{{ delong.auc.note }}.{% endif %}&#32;
The interval at the top is the bootstrap over patients; the two should be close.</span></p>
{% endif %}
{% if selective %}
<h2>What if it may keep silent when unsure?</h2>
<div class="pair">
<figure>{{ coverage }}<figcaption>From left to right fewer slides get an answer, the surest ones.
Surest: {{ selective.confidence }}.</figcaption></figure>
<div>
<div class="scroll"><table>
<thead><tr><th>slides kept</th><th>accuracy</th><th>AUC</th></tr></thead>
<tbody>{% for row in kept %}<tr><td>{{ row.share }}</td><td>{{ row.accuracy | number }}
<span class="interval">{{ row.low | number }} to {{ row.high | number }}</span></td><td>{{ row.auc | number }}</td></tr>
{% endfor %}</tbody></table></div>
<p class="muted">Area under the risk-coverage curve {{ selective.aurc.value | number }}
({{ selective.aurc.low | number }} to {{ selective.aurc.high | number }}); confidence that tells nothing would give
{{ selective.aurc_of_random | number }}, a perfect one {{ selective.aurc_of_best | number }}. The AUC of the surest
slides is not that of all: they are the easy ones.</p>
</div>
</div>
{% endif %}
{% if decision %}
<h3>Is acting on it worth more than treating all alike?</h3>
<figure>{{ decision }}<figcaption>Net benefit: true positives less false ones a slide, these weighed by the odds of the
probability from which one would act. It believes the scores as probabilities: see calibration above.</figcaption>
</figure>
{% endif %}
"""
_WAYS = {"positive_class": "positive class", "macro": "macro over classes"}
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.5)


def statistics_html(metrics: Mapping[str, Any]) -> Any:
    """Return the section as safe HTML; what `metrics` lacks is left out."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    averages, selective = metrics.get("averages") or {}, metrics.get("selective")
    decision = metrics.get("decision_curve")
    ways = [(title, list(averages[name].values())) for name, title in _WAYS.items() if name in averages]
    text = environment.from_string(_TEMPLATE).render(
        published=published_section(metrics.get("task", "")), averages=ways,
        averaged=list(averages["macro"]) if ways else [], delong=metrics.get("delong"),
        selective=selective, kept=_kept(selective) if selective else [],
        coverage=Markup(coverage_figure(selective)) if selective else "",
        decision=Markup(decision_figure(decision)) if decision else "",
    )  # fmt: skip
    return Markup(text)


def _kept(selective: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for share in _SHARES:
        index = selective["coverage"].index(share)
        accuracy = {name: selective["accuracy"][name][index] for name in ("value", "low", "high")}
        row = {"share": f"{share:.0%}", "accuracy": accuracy["value"], "low": accuracy["low"], "high": accuracy["high"]}
        rows.append({**row, "auc": selective["auc"][index]})
    return rows


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) and np.isfinite(value) else "–"
