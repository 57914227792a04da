"""What can be run with the data and weights at hand, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wsi_dino.errors import ConfigError
from wsi_dino.evaluation.published.printed_table import TABLE_NUMBERS, read_tables
from wsi_dino.paper.contestants import fits, why_not
from wsi_dino.paper.kind import Context
from wsi_dino.paper.kinds import KINDS
from wsi_dino.paper.kinds.slides import TRAINED_ON
from wsi_dino.paper.roots import PAPER_DATASETS, PUBLISHED_NAMES, Entry
from wsi_dino.paper.step import Step

_WITHOUT_TABLE = ("bcnb",)  # Figure 3


@dataclass(frozen=True)
class Plan:
    """Steps in an order in which they can be run.

    Attributes:
        encoders: all that were asked for.
        datasets: names of those that are wanted, of the paper or of one's own.
        steps: what will be run.
        missing_encoders: why an encoder cannot be run.
        missing_datasets: why a dataset cannot.
    """

    encoders: tuple[str, ...]
    datasets: tuple[str, ...]
    steps: tuple[Step, ...]
    missing_encoders: Mapping[str, str]
    missing_datasets: Mapping[str, str]


def datasets_of_tables(tables: Sequence[int]) -> list[str]:
    """Return the datasets whose results stand in these tables.

    Raises:
        ConfigError: there is no such table.
    """
    printed = read_tables()
    names: list[str] = []
    for number in tables:
        if number not in TABLE_NUMBERS:
            raise ConfigError(f"--table {number}: expected numbers from 1 to 10, as in --table 2,5.")
        for column in printed[number].number_columns:
            names += [PUBLISHED_NAMES[column.dataset]] if column.dataset in PUBLISHED_NAMES else []
    return list(dict.fromkeys(names))


def make_plan(encoders: Sequence[str], context: Context, tables: Sequence[int] = ()) -> Plan:
    """Return the plan.

    Args:
        encoders: wanted; also networks that learn from voxels.
        context: data and weights at hand.
        tables: only these; none for all, Figure 3 and datasets of one's own.

    Raises:
        ConfigError: an entry of ROOTS.yaml lacks something, or a table is unknown.
        UnknownEncoderError: there is no such encoder.
    """
    entries = context.entries
    wanted = datasets_of_tables(tables) if tables else [*PAPER_DATASETS, *(e for e in entries if not _is_known(e))]
    missing_encoders = {name: why for name in encoders if (why := why_not(name, context.weights, context.weights_dir))}
    usable = [name for name in encoders if name not in missing_encoders]
    missing = {name: f"no folder for {name} in ROOTS.yaml" for name in wanted if name not in entries}
    missing |= {
        name: f"trained on {TRAINED_ON[name]}, for which ROOTS.yaml has no folder"
        for name in wanted if name in entries and TRAINED_ON.get(name, name) not in entries
    }  # fmt: skip
    runnable = [name for name in wanted if name not in missing]
    steps = _with_needs(_all_steps(entries, usable, context), runnable)
    return Plan(tuple(encoders), tuple(wanted), steps, missing_encoders, missing)


def _is_known(name: str) -> bool:
    return name in PAPER_DATASETS


def _all_steps(entries: Mapping[str, Entry], encoders: Sequence[str], context: Context) -> list[Step]:
    order = sorted(entries.values(), key=lambda entry: entry.name in TRAINED_ON)  # after what it is trained on
    steps = []
    for entry in order:
        kind = KINDS[entry.kind]
        fitting = [name for name in encoders if fits(name, kind.name)]
        steps += kind.steps(entry, fitting, context) if fitting else []
    return steps


def _with_needs(steps: Sequence[Step], datasets: Sequence[str]) -> tuple[Step, ...]:
    """Return the steps with results of `datasets`, and all that they wait for."""
    by_key = {step.key: step for step in steps}
    kept: set[str] = set()
    waiting = [step.key for step in steps if step.results and step.dataset in datasets]
    while waiting:
        key = waiting.pop()
        if key not in kept:
            kept.add(key)
            waiting += by_key[key].needs
    return tuple(step for step in steps if step.key in kept)
