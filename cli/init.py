"""`wsi-dino init`: look at slides and labels, and write wsi-dino.yaml."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import JsonOption
from wsi_dino.cli.project_file import PROJECT_FILE
from wsi_dino.errors import CohortError, ConfigError, SlideError
from wsi_dino.provenance import write_text_atomically

if TYPE_CHECKING:
    from wsi_dino.evaluation.label_table import LabelTable
    from wsi_dino.pathology.discovery import SlideSource

_SHOWN = 3
_IDS = ("slide_id", "patient_id")


@dataclass(frozen=True)
class LabelsSeen:
    """What the label table says.

    Attributes:
        n_rows: rows of the table.
        n_matched: slides that have a row.
        slides_without_row, rows_without_slide: slide ids on one side only.
        has_patient_id: whether slides are grouped by patient.
        tasks: slides of each class, by target column.
    """

    n_rows: int
    n_matched: int
    slides_without_row: list[str]
    rows_without_slide: list[str]
    has_patient_id: bool
    tasks: dict[str, dict[str, int]]


@dataclass(frozen=True)
class SlidesSeen:
    """What the slide files say; `unreadable` holds the message of each slide that does not open."""

    slide_ids: list[str]
    n_with_mpp: int
    mpp_range: tuple[float, float] | None
    without_mpp: list[str]
    unreadable: list[str]


def init(
    slides: Annotated[Path, typer.Argument(help="Folder of slides, at any depth.", show_default=False)],
    labels: Annotated[
        Path,
        typer.Option("--labels", help="CSV: slide_id, optional patient_id, target columns.", show_default=False),
    ],
    run: Annotated[Path, typer.Option("--run", help="Folder that results will go to.")] = Path("wsi-dino-run"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing wsi-dino.yaml.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write wsi-dino.yaml after a look at slides and labels.

    It goes into the current folder, where every other command finds it.
    """
    path = Path.cwd() / PROJECT_FILE
    if path.exists() and not force:
        raise ConfigError(f"Writing {path}: it is there already. Edit it, or replace it with --force.")
    slides_seen = look_at_slides(slides)
    labels_seen = look_at_labels(labels, slides_seen.slide_ids)
    write_text_atomically(path, project_text(slides, labels, run, slides_seen, labels_seen))
    next_commands = _next_commands(labels_seen)
    if as_json:
        console.print_json(_summary(path, slides_seen, labels_seen, next_commands))
        return
    for line in _report(slides_seen, labels_seen):
        print(line)
    print(f"\nWrote {path}. Look at it, then:")
    for command in next_commands:
        print(f"  {command}")


# looking --------------------------------------------------------------------------------------
def look_at_slides(slides: Path) -> SlidesSeen:
    """Open every slide below `slides`, to see which carry their resolution.

    Raises:
        ConfigError: there is no such folder, no slide in it, or two slides of one name.
    """
    from wsi_dino.pathology.discovery import discover_slides

    sources = discover_slides(slides)
    mpps: list[float] = []
    without: list[str] = []
    unreadable: list[str] = []
    with console.progress("looking at slides", len(sources)) as report:
        for source in sources:
            try:
                mpp = _file_mpp(source)
            except SlideError as error:
                unreadable.append(str(error))
            else:
                without += [source.slide_id] if mpp is None else []
                mpps += [] if mpp is None else [mpp]
            report(1)
    mpp_range = (min(mpps), max(mpps)) if mpps else None
    return SlidesSeen([source.slide_id for source in sources], len(mpps), mpp_range, without, unreadable)


def _file_mpp(source: SlideSource) -> float | None:
    from wsi_dino.pathology.slide import open_slide

    with open_slide(source.path, slide_id=source.slide_id) as slide:
        return None if slide.file_mpp is None else slide.file_mpp[0]


def look_at_labels(labels: Path, slide_ids: Sequence[str]) -> LabelsSeen:
    """Compare the label table with the slides, and find the columns that can be predicted.

    Raises:
        CohortError: the table cannot be used: no file, no slide_id column, a slide twice, no slide in common.
    """
    from wsi_dino.evaluation.label_table import read_label_table

    table = read_label_table(labels)
    listed = [row.slide_id for row in table.rows]
    matched = set(listed) & set(slide_ids)
    if not matched:
        raise CohortError(
            f"Comparing {labels} with the slides: not one slide_id is the name of a slide. The table has "
            f"{_some(listed)}; the slides are {_some(slide_ids)} (file names without their ending)."
        )
    return LabelsSeen(
        n_rows=len(listed),
        n_matched=len(matched),
        slides_without_row=sorted(set(slide_ids) - matched),
        rows_without_slide=sorted(set(listed) - matched),
        has_patient_id=table.has_patient_id,
        tasks={column: counts for column in table.header if (counts := _class_counts(table, column, matched))},
    )


def _class_counts(table: LabelTable, column: str, matched: set[str]) -> dict[str, int]:
    """Slides of each class, or nothing when the column is no target."""
    from wsi_dino.evaluation.cohort import read_cohort

    if column in _IDS or not column:
        return {}
    try:
        return read_cohort(table, column).only(matched).counts()
    except CohortError:
        return {}


# writing --------------------------------------------------------------------------------------
def project_text(slides: Path, labels: Path, run: Path, seen: SlidesSeen, labels_seen: LabelsSeen) -> str:
    """Return the text of wsi-dino.yaml, commented for its reader; valid for `project_file.ProjectFile`."""
    patients = (
        "grouped by patient_id" if labels_seen.has_patient_id else "no patient_id: each slide counts as a patient"
    )
    lines = [
        "# What `wsi-dino tile`, `embed` and `mil` need not be told each time; flags override it.",
        "# Paths are relative to this file. Sections take any option of their verb (`wsi-dino tile --help`),",
        "# spelled with _ for -.",
        f"slides: {_yaml(_path_text(slides))}  # {len(seen.slide_ids)} slides",
        f"labels: {_yaml(_path_text(labels))}  # {labels_seen.n_matched} of these slides have a row; {patients}",
        f"run: {_yaml(_path_text(run))}  # all results go here",
        "",
        *_tile_lines(seen),
        "",
        "embed:",
        "  encoder: [efficientnet-lite0]  # `wsi-dino encoders` lists them; this one needs no download",
        "  # weights: FILE  # a checkpoint on this disk, for an encoder that may not be downloaded",
        "",
        "mil:",
        "  folds: 5",
        "",
        *_task_lines(labels_seen),
    ]
    return "\n".join(lines) + "\n"


def _tile_lines(seen: SlidesSeen) -> list[str]:
    n, without = len(seen.slide_ids), len(seen.without_mpp)
    if seen.n_with_mpp:
        missing = f"{without} of {n} slides do not say how large a pixel is (e.g. {_some(seen.without_mpp)}); give"
        hint = [f"  # {missing}", "  # mpp_table: mpp.csv  # slide_id,mpp", "  # assume_mpp: 0.25"] if without else []
        return ["tile:", "  mpp: 0.5  # um/px of a tile; native = the finest level of each slide", *hint]
    return [
        "tile:",
        "  # No slide says how large its pixels are, so tiles are cut by pixels at the finest level. Where you",
        "  # know the resolution, write instead: `mpp: 0.5` with `assume_mpp: 0.25` (um/px at the finest",
        "  # level), or with `mpp_table: mpp.csv` (slide_id,mpp).",
        "  mpp: native",
    ]


def _task_lines(labels: LabelsSeen) -> list[str]:
    if not labels.tasks:
        return ["tasks: {}  # no column of the label table has 2 to 20 classes"]
    lines = ["tasks:  # for `wsi-dino mil --task NAME`; of two classes the last is the positive one"]
    for column, counts in labels.tasks.items():
        how_many = ", ".join(f"{name}: {n}" for name, n in counts.items())
        lines += [
            f"  {_yaml(task_name(column))}:  # slides: {how_many}",
            f"    target: {_yaml(column)}",
            f"    classes: [{', '.join(_yaml(name) for name in counts)}]",
        ]
    return lines


def task_name(column: str) -> str:
    """Return how a column is called as a task.

    Examples:
        >>> task_name("HER2 Expression")
        'her2-expression'
    """
    return "-".join("".join(c if c.isalnum() or c in "._+" else " " for c in column.lower()).split()) or "task"


def _yaml(text: str) -> str:
    """Quote `text` where YAML would read it as anything but that text."""
    import yaml

    try:
        if text and yaml.safe_load(f"[{text}]") == [text] and yaml.safe_load(f"{text}: 1") == {text: 1}:
            return text
    except yaml.YAMLError:
        pass
    return json.dumps(text, ensure_ascii=False)


def _path_text(path: Path) -> str:
    """Return `path` relative to the current folder when it lies near, else absolute."""
    relative = Path(os.path.relpath(path))
    return (path.absolute() if relative.parts[:3] == ("..",) * 3 else relative).as_posix()


# saying ---------------------------------------------------------------------------------------
def _report(seen: SlidesSeen, labels: LabelsSeen) -> list[str]:
    lines = [f"{len(seen.slide_ids)} slides; {seen.n_with_mpp} say how large a pixel is{_range(seen.mpp_range)}."]
    lines += [f"  cannot be opened: {message}" for message in seen.unreadable[:_SHOWN]]
    if len(seen.unreadable) > _SHOWN:
        lines.append(f"  ... and {len(seen.unreadable) - _SHOWN} more that cannot be opened")
    lines.append(f"{labels.n_rows} rows of labels; {labels.n_matched} slides have one.")
    if labels.slides_without_row:
        lines.append(f"  slides without a row: {_some(labels.slides_without_row)}")
    if labels.rows_without_slide:
        lines.append(f"  rows without a slide: {_some(labels.rows_without_slide)}")
    if not labels.has_patient_id:
        lines.append("  no column patient_id: several slides of one patient would count as several patients")
    for column, counts in labels.tasks.items():
        lines.append(f"task {task_name(column)}: {', '.join(f'{n} {name}' for name, n in counts.items())}")
    return lines


def _range(mpp_range: tuple[float, float] | None) -> str:
    ends = [] if mpp_range is None else list(dict.fromkeys(f"{mpp:.3g}" for mpp in mpp_range))
    return f" ({' to '.join(ends)} um)" if ends else ""


def _next_commands(labels: LabelsSeen) -> list[str]:
    task = task_name(next(iter(labels.tasks))) if labels.tasks else "TASK"
    return ["wsi-dino tile", "wsi-dino embed --encoder efficientnet-lite0", f"wsi-dino mil --task {task} --folds 5"]


def _summary(path: Path, seen: SlidesSeen, labels: LabelsSeen, next_commands: list[str]) -> dict[str, Any]:
    return {
        "file": path,
        "n_slides": len(seen.slide_ids),
        "n_slides_with_mpp": seen.n_with_mpp,
        "unreadable": seen.unreadable,
        "n_rows": labels.n_rows,
        "n_matched": labels.n_matched,
        "slides_without_row": labels.slides_without_row,
        "rows_without_slide": labels.rows_without_slide,
        "tasks": {task_name(column): {"target": column, "slides": counts} for column, counts in labels.tasks.items()},
        "next": next_commands,
    }


def _some(items: Sequence[str]) -> str:
    shown = ", ".join(items[:_SHOWN])
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN} more"
