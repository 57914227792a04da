"""Tasks by name: which column is predicted, and how its values become classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wsi_dino.errors import CohortError, ConfigError, nearest_name
from wsi_dino.evaluation.cohort import Kind

_CONFIGS = "wsi_dino.configs"
_ALL = "all-"
Keep = dict[str, tuple[str, ...]]


class Scheme(BaseModel):
    """Which slides of the tables take part in a task, and how their patients are dealt.

    Attributes:
        kind: ``k-fold`` tests each patient once; ``fixed`` takes the partition that `column` states and
            trains `seeds` models on it; ``external`` trains `seeds` models on the label table and tests all
            of them on another cohort.
        folds: of ``k-fold``; None = what is asked for elsewhere.
        seeds: models of ``fixed`` and ``external``; each draws its validation patients and weights anew.
        column: of ``fixed``: the column of the label table that says train, test and, optionally, val.
        keep: for columns of the label table the values of the slides that take part; whatever their case.
        test_keep: the same for the table of the test cohort of ``external``.
        test_run: run that holds the test cohort's features; None = the same run.
        test_labels: label table of the test cohort; None = the same table.

    Examples:
        >>> Scheme(keep={"official": ("test",)}).takes({"official": "Test"}, test=False)
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["k-fold", "fixed", "external"] = "k-fold"
    folds: int | None = Field(default=None, ge=2)
    seeds: int = Field(default=5, ge=1)
    column: str = ""
    keep: Keep = {}
    test_keep: Keep = {}
    test_run: Path | None = None
    test_labels: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Scheme:
        belongs = {"folds": "k-fold", "column": "fixed", "seeds": "fixed external"}
        belongs |= dict.fromkeys(("test_keep", "test_run", "test_labels"), "external")
        for name, kinds in belongs.items():
            if name in self.model_fields_set and getattr(self, name) and self.kind not in kinds.split():
                raise ValueError(f"{name} belongs to kind {kinds.replace(' ', ' or ')}, this one is {self.kind}")
        if self.kind == "fixed" and not self.column:
            raise ValueError("kind fixed needs `column`: the column of the label table that says train or test")
        return self

    def takes(self, row: Mapping[str, str], *, test: bool) -> bool:
        """Return whether a row of the label table (or of that of the test cohort) takes part."""
        wanted = self.test_keep if test else self.keep
        return all(row[column].strip().lower() in map(str.lower, values) for column, values in wanted.items())


class Task(BaseModel):
    """What is predicted.

    Attributes:
        name: as typed after ``--task``; results lie in a folder of that name.
        kind: what is predicted: one of several ``classes``, several yes-or-no ``labels`` at once, a number
            (``regression``), or ``survival``.
        target: column of the label table.
        targets: of ``labels``: their columns.
        time, event: of ``survival``: columns of the time, and of whether the event was seen.
        survival_head: of ``survival``: ``discrete`` (a hazard for each interval of time) or ``cox``.
        intervals: of the discrete head.
        horizon: of ``survival``: time at which calibration is looked at; None = the median time to an event.
        classes: class names in order, the negative one first; None = found in the table.
        merge: for each class the values of the table that count as it besides its own name.
        threshold: for a target of numbers: a value at or above it is of the second class.
        scheme: which slides take part, and how their patients are dealt.
        description: one line for people.

    Examples:
        >>> task = Task(name="aln", target="ALN", classes=("N0", "N+"), merge={"N+": ("N+(1-2)", "N+(>2)")})
        >>> task.class_of(["N0", "N+(>2)"])
        {'N+(>2)': 'N+'}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Kind = "classes"
    target: str
    targets: tuple[str, ...] = ()
    time: str = ""
    event: str = ""
    survival_head: Literal["discrete", "cox"] = "discrete"
    intervals: int = Field(default=4, ge=1)
    horizon: float | None = Field(default=None, gt=0)
    classes: tuple[str, ...] | None = None
    merge: dict[str, tuple[str, ...]] = {}
    threshold: float | None = None
    scheme: Scheme = Scheme()
    description: str = ""

    @model_validator(mode="before")
    @classmethod
    def _name_target(cls, content: Any) -> Any:
        """Let several columns imply their kind and stand for the target."""
        if not isinstance(content, dict):
            return content
        several = content.get("targets") or ()
        survival = [content[name] for name in ("time", "event") if content.get(name)]
        implied = "labels" if several else "survival" if survival else "classes"
        columns = several if isinstance(several, list | tuple) and several else survival
        target = {"target": ", ".join(map(str, columns))} if columns else {}
        return {**content, "kind": content.get("kind", implied), **target}

    @model_validator(mode="after")
    def _check_kind(self) -> Task:
        belongs = dict.fromkeys(("time", "event", "survival_head", "intervals", "horizon"), "survival")
        belongs |= {"targets": "labels", "merge": "classes", "threshold": "classes", "classes": "classes labels"}
        for name, kinds in belongs.items():
            if name in self.model_fields_set and getattr(self, name) and self.kind not in kinds.split():
                raise ValueError(f"{name} belongs to kind {kinds.replace(' ', ' or ')}, this one is {self.kind}")
        if self.kind == "survival" and not (self.time and self.event):
            raise ValueError("kind survival needs `time` and `event`: two columns of the label table")
        if self.kind == "labels" and (len(self.targets) < 2 or len(set(self.targets)) < len(self.targets)):
            raise ValueError("kind labels needs `targets`: two or more different columns of the label table")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the label table that hold what is predicted."""
        return {"labels": self.targets, "survival": (self.time, self.event)}.get(self.kind, (self.target,))

    def with_columns(self, found: Sequence[str]) -> Task:
        """Return the task with its columns as the label table spells them."""
        names = {"labels": ("targets",), "survival": ("time", "event")}.get(self.kind, ())
        values = (tuple(found),) if self.kind == "labels" else tuple(found)
        return self.model_copy(update={"target": ", ".join(found), **dict(zip(names, values, strict=False))})

    @model_validator(mode="after")
    def _check(self) -> Task:
        unknown = sorted(set(self.merge) - set(self.classes or ()))
        if unknown:
            raise ValueError(f"merge names {', '.join(unknown)}, which is not among classes")
        if self.threshold is not None and len(self.classes or ()) != 2:
            raise ValueError("a threshold needs exactly two classes, the lower one first")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError("classes holds a name twice")
        return self

    def class_of(self, values: Iterable[str]) -> dict[str, str]:
        """Return the class of each value that this task maps; the label table's reader knows the others.

        Args:
            values: all different values of the column.

        Raises:
            CohortError: the values are fractions where the threshold is a percentage.
        """
        values = list(values)
        merged = {value.strip().lower(): name for name, members in self.merge.items() for value in members}
        result = {value: merged[value.strip().lower()] for value in values if value.strip().lower() in merged}
        return result | self._by_threshold(values)

    def cuts(self, values: Iterable[str]) -> bool:
        """Return whether the threshold makes the classes: not where the table holds classes already."""
        return bool(self._by_threshold(list(values)))

    def _by_threshold(self, values: Sequence[str]) -> dict[str, str]:
        if self.threshold is None or self.classes is None:
            return {}
        numbers = {value: number for value in values if (number := _number(value)) is not None}
        if set(numbers.values()) <= {0.0, 1.0}:
            return {}  # already classes
        if self.threshold > 1 and max(numbers.values()) <= 1:
            raise CohortError(
                f"Reading target {self.target!r} of task {self.name}: every value is at most 1, so these look like "
                f"fractions, but the threshold is {self.threshold:g}. Put `threshold: {self.threshold / 100:g}` under "
                f"`tasks: {self.name}:` in wsi-dino.yaml, or multiply the column by 100."
            )
        return {value: self.classes[number >= self.threshold] for value, number in numbers.items()}


def _number(value: str) -> float | None:
    try:
        return float(value.strip().removesuffix("%"))
    except ValueError:
        return None


def shipped_tasks() -> dict[str, Task]:
    """Return the tasks that come with the package, by name, from one short YAML each."""
    files = resources.files(_CONFIGS).iterdir()
    named = sorted((file.name.removesuffix(".yaml"), file) for file in files if file.name.endswith(".yaml"))
    return {name: make_task(name, yaml.safe_load(file.read_text(encoding="utf-8")) or {}) for name, file in named}


def make_task(name: str, content: Mapping[str, Any]) -> Task:
    """Make a task from its YAML content.

    Raises:
        ConfigError: an unknown key or a wrong type.
    """
    try:
        return Task.model_validate({"target": name, **content, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        fields = Scheme.model_fields if place.startswith("scheme.") else Task.model_fields
        near = nearest_name(place.removeprefix("scheme."), fields)
        what = f"Reading task {name or 'of the command line'}"
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{what}: {place}: {said}.{near}".replace(": :", ":")) from error


def find_task(
    name: str | None, target: str | None, own: Mapping[str, Mapping[str, Any]], asked: Mapping[str, Any] | None = None
) -> Task:
    """Find a task by name, among the project's own ones first, then the shipped ones.

    Args:
        name: after ``--task``; None makes a task of the target column's name.
        target: after ``--target``; overrides the column of a named task.
        own: ``tasks`` of wsi-dino.yaml.
        asked: more of a task's content that the command line states; overrides that of a named task.

    Raises:
        ConfigError: neither is given, no task has the name, or its YAML is wrong.
    """
    if asked:
        return _asked_task(name, target, own, asked)
    if name is None:
        if not target:
            raise ConfigError("What is to be predicted? Give --task NAME, or --target COLUMN of the label table.")
        return Task(name=target, target=target)
    if name in own:
        task = make_task(name, own[name])
    elif name in (shipped := shipped_tasks()):
        task = shipped[name]
    elif target:
        task = Task(name=name, target=target)
    else:
        known = [*own, *shipped]
        raise ConfigError(
            f"There is no task {name!r}.{nearest_name(name, known)} Known: {', '.join(known)}. "
            "Others are defined under `tasks:` in wsi-dino.yaml, or by --target COLUMN."
        )
    return task if target is None else task.model_copy(update={"target": target})


def _asked_task(
    name: str | None, target: str | None, own: Mapping[str, Mapping[str, Any]], asked: Mapping[str, Any]
) -> Task:
    """Make the task that the options describe, on top of a named one if there is one."""
    known = {**{one: task.model_dump(exclude_unset=True) for one, task in shipped_tasks().items()}, **own}
    content = {**known.get(name or "", {}), **({"target": target} if target else {}), **asked}
    made = make_task(name or "", content)
    if made.kind in ("classes", "regression") and "target" not in content:
        raise ConfigError("What is to be predicted? Give --target COLUMN of the label table.")
    return made if name else made.model_copy(update={"name": _name_of(made)})


def _name_of(task: Task) -> str:
    """Return the name of a task that has none: its columns."""
    return f"survival-{task.time}" if task.kind == "survival" else "+".join(task.columns)


def expand_task(name: str, own: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the tasks that a name stands for: ``all-bcnb`` is every task whose name begins with ``bcnb-``.

    A task that is itself called so wins.

    Examples:
        >>> expand_task("all-bcnb", {})
        ['bcnb-aln', 'bcnb-er', 'bcnb-her2', 'bcnb-ki67', 'bcnb-pr']
        >>> expand_task("bcnb-er", {})
        ['bcnb-er']
    """
    if not name.startswith(_ALL) or name in own:
        return [name]
    known = sorted({*own, *shipped_tasks()})
    members = [task for task in known if task.startswith(f"{name.removeprefix(_ALL)}-")]
    if not members:
        groups = sorted({f"{_ALL}{task.partition('-')[0]}" for task in known if "-" in task})
        raise ConfigError(
            f"There is no task whose name begins with {name.removeprefix(_ALL)!r} and a dash, as {name} asks."
            f"{nearest_name(name, groups)} Groups there are: {', '.join(groups)}."
        )
    return members


def find_columns(task: Task, header: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of `header` that hold what the task predicts; see `find_column`.

    Raises:
        CohortError: one is missing, several fit equally well, or two are the same.
    """
    found = tuple(find_column(task, header, column) for column in task.columns)
    if len(set(found)) < len(found):
        raise CohortError(f"Finding the targets of task {task.name}: {', '.join(found)} is named twice.")
    return found


def find_column(task: Task, header: Sequence[str], target: str | None = None) -> str:
    """Return the column of `header` that holds the task's target, or another column by the name `target`.

    It is the column of the target's name; else, whatever its case; else one named like the task:
    ``bcnb-er``, ``bcnb_er`` or ``er``.

    Raises:
        CohortError: there is none, or several fit equally well.

    Examples:
        >>> task = Task(name="bcnb-er", target="ER")
        >>> find_column(task, ["slide_id", "er"]), find_column(task, ["slide_id", "bcnb_er"])
        ('er', 'bcnb_er')
    """
    asked = target or task.target
    if asked in header:
        return asked
    for wanted in (asked, *((task.name, task.name.partition("-")[2]) if asked == task.target else ())):
        fitting = [column for column in header if wanted and _folded(column) == _folded(wanted)]
        if len(fitting) > 1:
            raise CohortError(
                f"Finding the target of task {task.name}: columns {', '.join(fitting)} all fit {wanted!r}. "
                "Name one with --target."
            )
        if fitting:
            return fitting[0]
    near = nearest_name(asked, header)
    option = "--survival" if task.kind == "survival" else "--target"
    raise CohortError(
        f"Finding the target of task {task.name}: the label table has no column {asked!r}.{near} "
        f"Columns there are: {', '.join(header)}. Name one with {option}."
    )


def _folded(name: str) -> str:
    return re.sub(r"[-_\s]+", "_", name.strip().casefold())
