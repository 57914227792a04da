"""`wsi-dino mil`: can a frozen encoder's features predict a label of whole slides?"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import adapting, console, mil_models, mil_targets
from wsi_dino.cli.mil_outcome import as_json as outcome_json
from wsi_dino.cli.mil_outcome import print_outcome, print_overview
from wsi_dino.cli.mil_work import Order, work_off
from wsi_dino.cli.options import Device, DeviceOption, JsonOption, RunOption, WorkersOption
from wsi_dino.cli.options import panel_option as _option
from wsi_dino.cli.project_file import PROJECT_FILE, read_project_file
from wsi_dino.errors import ConfigError, nearest_name

if TYPE_CHECKING:
    from wsi_dino.mil.run import MilRequest
    from wsi_dino.mil.search import SearchSpec
    from wsi_dino.mil.tasks import Task
    from wsi_dino.mil.training import TrainingSpec
    from wsi_dino.run_folder import RunFolder

_WHAT, _SPLIT, _TRAINING, _RESULTS = "What is predicted", "Folds", "Training", "Results"
_SPELT = {"settings": "set"}  # parameters of another name than their option
_POLICIES = ("youden-on-validation", "f1-on-validation", "fixed-0.5")
_PATHS = ("labels", "splits", "test_run", "test_labels", "weights", "weights_dir", "slides")
_NOT_IN_COMMAND = ("ctx", "run", *_PATHS, "device", "workers", "as_json", "encoder", "return")


def mil(
    ctx: typer.Context,
    run: RunOption,
    labels: Annotated[
        Path | None,
        _option(_WHAT, "--labels", help="CSV: slide_id, optional patient_id, target columns. Ids are text."),
    ] = None,
    task: Annotated[
        str | None,
        _option(
            _WHAT, "--task",
            help="Task by name: of `tasks:` in wsi-dino.yaml, or bcnb-er, bcnb-pr, bcnb-her2, bcnb-ki67, bcnb-aln, "
            "camelyon16-official, camelyon16-cv, camelyon17-unseen; all-bcnb: every one that begins with bcnb-.",
        ),
    ] = None,
    target: mil_targets.TargetOption = None,
    regression: mil_targets.RegressionOption = False,
    survival: mil_targets.SurvivalOption = None,
    survival_head: mil_targets.HeadOption = None,
    horizon: mil_targets.HorizonOption = None,
    encoder: Annotated[
        list[str] | None,
        _option(
            _WHAT, "--encoder", help="Whose features; may be repeated.  [default: the only one that RUN has]"
        ),
    ] = None,
    model: mil_models.ModelOption = None,
    settings: mil_models.SetOption = None,
    search: mil_models.SearchOption = None,
    allow_random_weights: Annotated[
        bool,
        _option(_WHAT, "--allow-random-weights", help="Accept features of an encoder without trained weights."),
    ] = False,
    test_run: Annotated[
        Path | None,
        _option(_WHAT, "--test-run", help="Run that holds the other cohort of a task that tests on one."),
    ] = None,
    test_labels: Annotated[
        Path | None,
        _option(_WHAT, "--test-labels", help="Label table of that other cohort.  [default: --labels]"),
    ] = None,
    folds: Annotated[
        int | None,
        _option(_SPLIT, "--folds", min=2, help="Folds by patient, stratified; 5 gives 7:1:2.  [default: 5]"),
    ] = None,
    seeds: Annotated[
        int | None,
        _option(_SPLIT, "--seeds", min=1, help="Models of a task with a fixed test set.  [default: the task's, or 5]"),
    ] = None,
    splits: Annotated[
        Path | None,
        _option(_SPLIT, "--splits", help="CSV fold,patient_id (or slide_id),subset to use instead of --folds."),
    ] = None,
    seed: Annotated[
        int, _option(_SPLIT, "--seed", min=0, help="Of folds, weights, order and bootstrap.  [default: 0]")
    ] = 0,
    permute_labels: Annotated[
        int | None,
        _option(
            _WHAT, "--permute-labels", min=0, metavar="SEED",
            help="Deal the labels anew among patients, to see what chance gives; results go to TASK-permuted-SEED.",
        ),
    ] = None,
    epochs: Annotated[int | None, _option(_TRAINING, "--epochs", min=1, help="At most.  [default: 40]")] = None,
    min_epochs: Annotated[
        int | None, _option(_TRAINING, "--min-epochs", min=0, help="Before the first that may be kept.  [default: 10]")
    ] = None,
    patience: Annotated[
        int | None,
        _option(
            _TRAINING, "--patience", min=1, help="Epochs without a better validation loss.  [default: 15]"
        ),
    ] = None,
    lr: Annotated[
        float | None, _option(_TRAINING, "--lr", help="Learning rate of AdamW, falling by a cosine.  [default: 2e-4]")
    ] = None,
    weight_decay: Annotated[
        float | None, _option(_TRAINING, "--weight-decay", help="Of AdamW.  [default: 1e-5]")
    ] = None,
    dropout: Annotated[
        float | None, _option(_TRAINING, "--dropout", help="Share set to zero.  [default: 0.25]")
    ] = None,
    batch_slides: Annotated[
        int | None, _option(_TRAINING, "--batch-slides", min=1, help="Slides a step, at most.  [default: 8]")
    ] = None,
    max_tiles: Annotated[
        int | None,
        _option(
            _TRAINING, "--max-tiles", min=1,
            help="Tiles drawn anew each epoch from larger slides, in training only.  [default: all]",
        ),
    ] = None,
    hidden_dim: Annotated[
        int | None, _option(_TRAINING, "--hidden-dim", min=1, help="Length of the projection.  [default: 512]")
    ] = None,
    attention_dim: Annotated[
        int | None, _option(_TRAINING, "--attention-dim", min=1, help="Length inside the attention.  [default: 256]")
    ] = None,
    precision: Annotated[
        str | None,
        _option(_TRAINING, "--precision", help="fp32, bf16 or auto (bf16 where the hardware has it).  [default: auto]"),
    ] = None,
    threshold_policy: Annotated[
        str,
        _option(
            _RESULTS, "--threshold-policy",
            help=f"Where a score is cut: {', '.join(_POLICIES)}.  [default: {_POLICIES[0]}]",
        ),
    ] = _POLICIES[0],
    bootstrap: Annotated[
        int,
        _option(_RESULTS, "--bootstrap", min=100, help="Resamples of patients for intervals.  [default: 2000]"),
    ] = 2000,
    heatmaps: Annotated[
        int,
        _option(
            _RESULTS, "--heatmaps", min=0, metavar="N",
            help="Draw attention over N held-out slides, highest score first (`heatmap` draws more).  [default: 0]",
        ),
    ] = 0,
    top_tiles: Annotated[
        int,
        _option(
            _RESULTS, "--top-tiles", min=0, metavar="N",
            help="Show so many tiles most and least like each class in the report; 0 = none.  [default: 8]",
        ),
    ] = 8,
    faithfulness: Annotated[
        int,
        _option(
            _RESULTS, "--faithfulness", min=0, metavar="N",
            help="Remove and insert attended tiles on N held-out slides and follow the score.  [default: 0]",
        ),
    ] = 0,
    no_report: Annotated[
        bool, _option(_RESULTS, "--no-report/--report", help="Write no report.html.  [default: write it]")
    ] = False,
    adapt: adapting.AdaptOption = None,
    adapt_tiles: adapting.TilesOption = None,
    adapt_epochs: adapting.EpochsOption = None,
    adapt_lr: adapting.RateOption = None,
    adapt_rank: adapting.RankOption = None,
    adapt_layers: adapting.LayersOption = None,
    pooling: adapting.PoolingOption = None,
    weights: adapting.WeightsOption = None,
    weights_dir: adapting.WeightsDirOption = None,
    random_weights: adapting.RandomWeightsOption = None,
    slides: adapting.SlidesOption = None,
    workers: WorkersOption = 0,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Train and test attention-based MIL, or another model, on a run's features.

    Cross-validated with patients kept on one side of each fold.
    Writes RUN/mil/TASK/ENCODER/ (of a model other than abmil ENCODER+MODEL/): report.html, metrics.json,
    predictions.csv, splits.csv, model/, attention/ and, with --heatmaps, heatmaps/. Run again, it learns only folds
    that are missing or asked for differently.
    With --adapt lora the encoder itself learns with them, fold by fold.
    Exit code 1 when a feature file was broken, a slide could not be read, or a heatmap could not be drawn.
    """
    # the context holds paths as plain text
    paths = {"run": run, "labels": labels, "splits": splits, "weights": weights, "weights_dir": weights_dir}
    paths |= {"slides": slides, "test_run": test_run, "test_labels": test_labels}
    plan = _plan({**ctx.params, **paths})
    adapting.check_adapt_options(plan.given)
    from wsi_dino.mil.material import choose_encoders

    models = mil_models.chosen_models(plan.given, plan.tasks)
    specs = mil_models.training_specs(plan.given, models)
    searches = {name: mil_models.search_spec(plan.given, spec) for name, spec in specs.items()}
    encoders = plan.encoders if adapt else choose_encoders(plan.run, plan.encoders)
    orders = [
        Order(chosen, name, [_request(plan, chosen, name, spec, searches[spec.model]) for spec in specs.values()])
        for chosen in plan.tasks
        for name in encoders
    ]
    outcomes = work_off(plan.run, plan.labels, orders, plan.given)
    if as_json:
        console.print_json(outcome_json(plan.run.path, outcomes))
    else:
        for done in outcomes:
            print_outcome(done)
        print_overview(outcomes)
    console.leave(sum(done.n_failed for done in outcomes))


@dataclass(frozen=True)
class _Plan:
    """The checked request for all tasks and encoders."""

    run: RunFolder
    tasks: list[Task]
    labels: Path
    encoders: list[str]
    given: dict[str, Any]


def _plan(given: dict[str, Any]) -> _Plan:
    from wsi_dino.run_folder import RunFolder

    tasks = _tasks(given)
    if given["labels"] is None:
        raise ConfigError(
            "Which slide has which label? Give --labels CSV with the columns slide_id, optional patient_id and "
            "targets, or put `labels:` into wsi-dino.yaml."
        )
    if given["threshold_policy"] not in _POLICIES:
        wrong = given["threshold_policy"]
        raise ConfigError(
            f"--threshold-policy: there is no {wrong!r}.{nearest_name(wrong, _POLICIES)} Known: {', '.join(_POLICIES)}."
        )
    return _Plan(RunFolder(given["run"]).require(), tasks, given["labels"], list(given["encoder"] or []), given)


def _tasks(given: dict[str, Any]) -> list[Task]:
    from wsi_dino.mil.tasks import expand_task, find_task

    project = read_project_file()
    own = project.tasks if project else {}
    names = expand_task(given["task"], own) if given["task"] else [None]
    target, asked = mil_targets.asked_target(given)
    return [_with_test_cohort(find_task(name, target, own, asked), given) for name in names]


def _with_test_cohort(task: Task, given: dict[str, Any]) -> Task:
    """Let the command line name the test cohort, and say which of its options the task's scheme has no use for."""
    scheme, places = task.scheme, {name: given[name] for name in ("test_run", "test_labels") if given[name] is not None}
    if places and scheme.kind != "external":
        raise ConfigError(
            f"--{min(places).replace('_', '-')}: task {task.name} is not tested on another cohort (its scheme is "
            f"{scheme.kind}). camelyon17-unseen is; a task of your own has `scheme: {{kind: external}}`."
        )
    unused = "folds" if scheme.kind != "k-fold" else "seeds"
    if given[unused] is not None and given["splits"] is None:
        console.say(f"note: --{unused} is not used by task {task.name}: its scheme is {scheme.kind}.")
    return task.model_copy(update={"scheme": scheme.model_copy(update=places)})


def _request(
    plan: _Plan, task: Task, encoder: str, spec: TrainingSpec, search: SearchSpec | None
) -> MilRequest:  # fmt: skip
    from wsi_dino.mil.fold_work import Learning
    from wsi_dino.mil.report_content import Telling
    from wsi_dino.mil.run import MilRequest

    given = plan.given
    learning = Learning(
        spec,
        given["threshold_policy"],
        resolve_mil_device(str(given["device"])),
        given["workers"] or None,
        search,
    )
    told = exact_command(_of_task(mil_models.of_model(given, spec.model), task), encoder)
    return MilRequest(
        learning, given["folds"], given["seed"], given["splits"], given["bootstrap"], given["heatmaps"],
        not given["no_report"], Telling(*told), given["seeds"], given["top_tiles"], given["faithfulness"],
    )  # fmt: skip


def _of_task(given: dict[str, Any], task: Task) -> dict[str, Any]:
    """Return the options as if this task alone had been asked for."""
    return given if given["task"] is None else {**given, "task": task.name}


def resolve_mil_device(asked: str) -> str:
    """Return where MIL runs: as `encoders.devices.resolve_device`, but not on mps unless asked for."""
    from wsi_dino.encoders.devices import resolve_device

    resolved = resolve_device(asked)
    return "cpu" if asked == "auto" and resolved == "mps" else resolved  # small work: the CPU is as fast as mps


def exact_command(given: dict[str, Any], encoder: str) -> tuple[str, str]:
    """Return a command that gives the same result, free of absolute paths, and in which folder to type it.

    Args:
        given: every option by its Python name.
        encoder: the one whose result it is.
    """
    has_project = (Path.cwd() / PROJECT_FILE).is_file()
    base = Path.cwd() if has_project else Path(given["run"])
    words = ["wsi-dino", "mil", "--run", _relative(given["run"], base), "--encoder", encoder]
    for name in _PATHS:
        if given.get(name) is not None and (name != "slides" or given.get("adapt")):
            words += [f"--{name.replace('_', '-')}", _relative(given[name], base)]
    left_out = {*_NOT_IN_COMMAND, "folds" if given["splits"] is not None else ""}
    for name in mil.__annotations__:  # in the order of --help, however it was typed
        flag, value = f"--{_SPELT.get(name, name).replace('_', '-')}", given.get(name)
        if name not in left_out and value is not None and value is not False:
            # of an option that takes two words the value is a tuple, too
            for each in value if isinstance(value, list | tuple) and name != "survival" else [value]:
                words += [flag] if each is True else [flag, *map(str, each if isinstance(each, tuple) else [each])]
    place = (
        f"In the folder of {PROJECT_FILE}:" if has_project else "In the folder of the run (the one that holds mil/):"
    )
    return shlex.join(words), place


def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path, base)).as_posix()
