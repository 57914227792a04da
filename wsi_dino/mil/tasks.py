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
        target: column of the label table.
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
    target: str
    classes: tuple[str, ...] | None = None
    merge: dict[str, tuple[str, ...]] = {}
    threshold: float | None = None
    scheme: Scheme = Scheme()
    description: str = ""

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
        raise ConfigError(f"Reading task {name}: {place}: {first['msg']}.{near}".replace(": :", ":")) from error


def find_task(name: str | None, target: str | None, own: Mapping[str, Mapping[str, Any]]) -> Task:
    """Find a task by name, among the project's own ones first, then the shipped ones.

    Args:
        name: after ``--task``; None makes a task of the target column's name.
        target: after ``--target``; overrides the column of a named task.
        own: ``tasks`` of wsi-dino.yaml.

    Raises:
        ConfigError: neither is given, no task has the name, or its YAML is wrong.
    """
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


def find_column(task: Task, header: Sequence[str]) -> str:
    """Return the column of `header` that holds the task's target.

    It is the column of the target's name; else, whatever its case; else one named like the task:
    ``bcnb-er``, ``bcnb_er`` or ``er``.

    Raises:
        CohortError: there is none, or several fit equally well.

    Examples:
        >>> task = Task(name="bcnb-er", target="ER")
        >>> find_column(task, ["slide_id", "er"]), find_column(task, ["slide_id", "bcnb_er"])
        ('er', 'bcnb_er')
    """
    if task.target in header:
        return task.target
    for wanted in (task.target, task.name, task.name.partition("-")[2]):
        fitting = [column for column in header if wanted and _folded(column) == _folded(wanted)]
        if len(fitting) > 1:
            raise CohortError(
                f"Finding the target of task {task.name}: columns {', '.join(fitting)} all fit {wanted!r}. "
                "Name one with --target."
            )
        if fitting:
            return fitting[0]
    near = nearest_name(task.target, header)
    raise CohortError(
        f"Finding the target of task {task.name}: the label table has no column {task.target!r}.{near} "
        f"Columns there are: {', '.join(header)}. Name one with --target."
    )


def _folded(name: str) -> str:
    return re.sub(r"[-_\s]+", "_", name.strip().casefold())
