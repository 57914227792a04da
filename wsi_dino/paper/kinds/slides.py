"""Whole slides: Camelyon16, Camelyon17 Unseen, BCNB, slides of one's own with a table of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsi_dino.errors import ConfigError
from wsi_dino.paper.kind import Context, Figure, Work
from wsi_dino.paper.roots import Entry
from wsi_dino.paper.step import ResultKey, Step, flags
from wsi_dino.run_folder import safe_name

BCNB_TASKS = ("bcnb-er", "bcnb-pr", "bcnb-her2", "bcnb-ki67", "bcnb-aln")
TRAINED_ON = {"camelyon17": "camelyon16"}
_TASKS = {"camelyon16": ("camelyon16-cv", "camelyon16-official"), "camelyon17": ("camelyon17-unseen",),
          "bcnb": BCNB_TASKS}  # fmt: skip
_FIGURES = {"auc": "auc", "acc": "accuracy", "precision": "precision", "recall": "recall"}
_SLIDES_IN = {"bcnb": "WSIs"}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {"bcnb": {"mpp": "native"}}  # its JPEGs say no resolution; as the paper


class Slides:
    """`wsi-dino cohort`, `tile`, `embed` and `mil`."""

    name = "slides"
    commands: tuple[str, ...] = ("cohort", "tile", "embed", "mil")
    unit_of_resampling = "patients"

    def steps(self, entry: Entry, encoders: Sequence[str], context: Context) -> list[Step]:
        """Return labels and tiles once, then features and tasks of each encoder."""
        run = context.run_of(entry)
        steps = [self._cohort(entry, context)] if entry.is_of_paper else []
        words = ["tile", str(slides_folder(entry)), "--run", str(run), *flags(tile_options(entry))]
        words += context.running_words()
        steps.append(self._step(entry, "tile", "", words, outputs=(entry.folder / "tiles.csv",), inputs=(entry.root,)))
        for encoder in encoders:
            words = ["embed", "--encoder", encoder, "--run", str(run), *flags(entry.options_of("embed"))]
            embed = self._step(entry, "embed", encoder, [*words, *context.model_words(encoder)],
                               needs=(f"{entry.folder.name}.tile",),
                               inputs=(entry.root, *context.weights_inputs(encoder)))  # fmt: skip
            steps += [embed, *self._tasks(entry, encoder, embed.key, context)]
        return steps

    def _cohort(self, entry: Entry, context: Context) -> Step:
        options = entry.options_of("cohort")
        words = ["cohort", entry.form, str(entry.root), "--labels", str(context.run_of(entry) / "labels.csv")]
        return self._step(entry, "cohort", "", [*words, *flags(options)], outputs=(entry.folder / "labels.csv",),
                          inputs=(entry.root,))  # fmt: skip

    def _tasks(self, entry: Entry, encoder: str, embedded: str, context: Context) -> list[Step]:
        trained_on = TRAINED_ON.get(entry.name)
        if trained_on is not None and trained_on not in context.entries:
            return []
        home = context.entries[trained_on] if trained_on else entry
        run = context.run_of(home)
        labels = run / "labels.csv" if home.is_of_paper else _own_labels(home)
        steps = []
        for task in tasks_of(entry):
            words = ["mil", "--run", str(run), "--labels", str(labels), "--encoder", encoder]
            words += ["--target" if entry.target else "--task", task]
            needs = [embedded, *([f"{entry.folder.name}.cohort"] if entry.is_of_paper else [])]
            if trained_on:
                test_run = context.run_of(entry)
                words += ["--test-run", str(test_run), "--test-labels", str(test_run / "labels.csv")]
                needs += [f"{home.folder.name}.embed.{safe_name(encoder)}", f"{home.folder.name}.cohort"]
            words += flags(_fitting(entry.options_of("mil"), task))
            result = home.folder / "mil" / safe_name(task) / safe_name(encoder) / "metrics.json"
            steps.append(self._step(
                entry, f"mil.{task}", encoder, [*words, *context.running_words()],
                results={ResultKey(entry.name, task, encoder): result}, needs=tuple(needs),
                inputs=() if home.is_of_paper else (labels,),
            ))  # fmt: skip
        return steps

    def _step(
        self, entry: Entry, what: str, encoder: str, words: Sequence[str], *,
        results: Mapping[ResultKey, Path] | None = None, outputs: tuple[Path, ...] = (), needs: tuple[str, ...] = (),
        inputs: tuple[Path, ...] = (),
    ) -> Step:  # fmt: skip
        key = ".".join([entry.folder.name, what, *([safe_name(encoder)] if encoder else [])])
        return Step(key, self.name, entry.name, encoder, tuple(words), results or {}, outputs, needs, inputs)

    def figures(self, metrics: Mapping[str, Any], folder: Path) -> dict[str, Figure]:
        """Return those of the positive class, means over the folds."""
        summary, policy = metrics["summary"], metrics["protocol"]["threshold_policy"]
        figures = {}
        for metric, key in _FIGURES.items():
            found = summary.get(key)
            if found is not None:
                cut = "" if metric == "auc" else f", threshold {policy}"
                convention = f"{key} of the positive class, mean over {len(metrics['folds'])} models{cut}"
                figures[metric] = Figure(found["value"], found["low"], found["high"], "share", convention)
        return figures

    def protocol(self, metrics: Mapping[str, Any]) -> str:
        """Return task, scheme, model, interval."""
        training = metrics["protocol"]["training"]
        return (
            f"{metrics['task']}: {metrics['n_slides']} slides of {metrics['n_patients']} patients; "
            f"{metrics['protocol']['split_scheme']}, {len(metrics['folds'])} models; {metrics['model']} on frozen "
            f"features, at most {training['epochs']} epochs; {_text(metrics['protocol']['interval'])}"
        )

    def work(self, entry: Entry, encoder: str) -> Work:
        """Count slides; how many tiles they have is measured by tiling some (`plan`)."""
        from wsi_dino.pathology.discovery import discover_slides

        n_slides = len(discover_slides(slides_folder(entry)))
        return Work(n_slides, "slides", 0.0, None, False, 1.0, f"{n_slides} slides found", "training of MIL models")


def slides_folder(entry: Entry) -> Path:
    """Return where the slides lie: BCNB's folder holds patches beside them, under the same names."""
    inner = entry.root / _SLIDES_IN.get(entry.form, "")
    return inner if inner.is_dir() else entry.root


def tile_options(entry: Entry) -> dict[str, Any]:
    """Return the options of `tile`."""
    return {**_OPTIONS.get(entry.name, {}), **entry.options_of("tile")}


def tasks_of(entry: Entry) -> tuple[str, ...]:
    """Return the tasks that ROOTS.yaml names, or the paper's.

    Raises:
        ConfigError: slides of one's own without a task or a target.
    """
    tasks = entry.tasks or _TASKS.get(entry.name) or ((entry.target,) if entry.target else ())
    if not tasks:
        raise ConfigError(f"ROOTS.yaml, {entry.name}: slides of your own need target: COLUMN, or tasks: [NAME].")
    return tuple(tasks)


def _fitting(options: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Leave out what does not go with the scheme: folds of a fixed test set, seeds of folds."""
    is_folds = task.startswith("bcnb-") or task.endswith("-cv") or not task.startswith("camelyon")
    unfit = "seeds" if is_folds else "folds"
    return {name: value for name, value in options.items() if name != unfit}


def _own_labels(entry: Entry) -> Path:
    if entry.labels is None:
        raise ConfigError(f"ROOTS.yaml, {entry.name}: slides of your own need labels: TABLE.csv.")
    return entry.labels


def _text(interval: Any) -> str:
    return interval if isinstance(interval, str) else "; ".join(f"{key} {value}" for key, value in interval.items())
