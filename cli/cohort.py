"""`wsi-dino cohort`: label tables of public cohorts from their official files, and what is wrong with a table."""

from __future__ import annotations

import inspect
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from wsi_dino.cli import console
from wsi_dino.cli.grouped_help import GroupedCommand
from wsi_dino.cli.options import JsonOption
from wsi_dino.errors import CohortError, ConfigError, SlideError
from wsi_dino.pathology.cohorts.cohort_table import CohortReader, cohort_readers

if TYPE_CHECKING:
    from wsi_dino.evaluation.leaks import Finding
    from wsi_dino.pathology.cohorts.cohort_table import CohortTable

_SHOWN = 20
_LabelsOption = Annotated[
    Path | None, typer.Option("--labels", help="Write the label table here, for `mil --labels`.", show_default=False)
]
_SplitsOption = Annotated[
    Path | None,
    typer.Option("--splits", help="Write the cohort's own split here, for `mil --splits`.", show_default=False),
]
_ContoursOption = Annotated[
    Path | None,
    typer.Option(
        "--contours-to", help="Write annotated regions here as SLIDE.geojson, for `tile --contours`.",
        show_default=False,
    ),
]  # fmt: skip
_PartialOption = Annotated[
    bool, typer.Option("--partial", help="A part of the download is enough: exit code 0 though slides are missing.")
]


def cohort_app() -> typer.Typer:
    """Return the group of commands: one for each cohort that has a reader."""
    app = typer.Typer(
        name="cohort", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
        help="Make label tables of public cohorts from their official files; check tables for leaks.",
    )  # fmt: skip
    for reader in cohort_readers().values():
        app.command(reader.name, cls=GroupedCommand, help=_help(reader))(_command(reader))
    app.command("check", cls=GroupedCommand, help=check.__doc__)(check)
    return app


def check(
    labels: Annotated[Path, typer.Argument(help="Label table to look through.")],
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Compare its slides too: their pictures and features.", show_default=False),
    ] = None,
    splits: Annotated[
        Path | None, typer.Option("--splits", help="Look at these folds of patients too.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look for what would leak in a label table.

    Slides in two rows, labels that contradict each other, patients on two sides; with --run also slides that
    are another one once more: by their pictures in RUN/thumbnails and by their features.
    `mil` does the same before it learns. Exit code 1 when something would make figures wrong.
    """
    from wsi_dino.evaluation.label_table import read_label_table
    from wsi_dino.evaluation.leaks import table_findings
    from wsi_dino.evaluation.split import read_sides

    table = read_label_table(labels, unique=False)
    rows, patient_of = [row.cells for row in table.rows], {row.slide_id: row.patient_id for row in table.rows}
    sides = read_sides(splits, patient_of) if splits is not None else []
    findings = table_findings(rows)
    if run is not None:
        findings += _run_findings(run, patient_of, sides)
    n_grave = sum(finding.is_grave for finding in findings)
    counts = {"n_slides": len(patient_of), "n_patients": len(set(patient_of.values())), "n_folds": len(sides)}
    if as_json:
        records = [finding.to_record() for finding in findings]
        console.print_json(
            {"command": "cohort", "labels": str(labels), **counts, "findings": records, "n_failed": n_grave}
        )
    else:
        print(f"{counts['n_slides']} slides of {counts['n_patients']} patients")
        for finding in findings:
            print(f"{'leak' if finding.is_grave else 'note'}: {finding.text}")
        if not findings:
            print("nothing that would leak")
    console.leave(n_grave)


def _run_findings(run: Path, patient_of: dict[str, str], sides: list[dict[str, str]]) -> list[Finding]:
    from wsi_dino.evaluation.leaks import duplicate_findings
    from wsi_dino.evaluation.near_duplicates import find_near_duplicates
    from wsi_dino.run_folder import RunFolder

    folder = RunFolder(run).require()
    pictures = {slide: folder.thumbnails / f"{slide}.jpg" for slide in patient_of}
    pictures = {slide: path for slide, path in pictures.items() if path.is_file()}
    paths = [path for name in folder.encoders() for path in sorted(folder.features(name).glob("*.h5"))]
    paths = [path for path in paths if path.stem in patient_of]
    with console.progress("cohort check", unit="files") as progress:
        progress(0, total=len(pictures) + len(paths))
        near = find_near_duplicates(pictures, progress)
        prints = _fingerprints(paths, progress)
    if not pictures:
        console.say(f"note: {folder.thumbnails} has no picture of these slides: their looks were not compared.")
    return duplicate_findings(near, prints, patient_of, dict.fromkeys(patient_of, ""), sides)


def _fingerprints(paths: list[Path], progress: Any) -> dict[str, str]:
    """Return one fingerprint for each slide, over the features of all encoders."""
    from wsi_dino.errors import FeatureFileError
    from wsi_dino.feature_file import read_features
    from wsi_dino.mil.bags import features_fingerprint

    prints: dict[str, str] = {}
    for path in paths:
        try:
            features = read_features(path)
        except FeatureFileError as error:
            console.say(f"note: {error}")
        else:
            if len(features):
                prints[path.stem] = prints.get(path.stem, "") + features_fingerprint(features)
        progress(1, text=path.stem)
    return prints


def _help(reader: CohortReader) -> str:
    return (
        f"{reader.title}.\n\nReads the official files in FOLDER, checks their counts and, with --labels, writes the "
        "label table.\nExit code 1 when slides are missing (unless --partial) or a count is not the published one."
    )


def _command(reader: CohortReader) -> Any:
    """Make the command of one cohort; the fields of its settings are options."""

    def run(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in reader.settings.model_fields}
        _read(reader, reader.read(given["folder"], _settings(reader, chosen)), given)

    fixed: dict[str, tuple[Any, Any]] = {
        "folder": (Annotated[Path, typer.Argument(help="Folder of the cohort as downloaded.")], ...),
        "labels": (_LabelsOption, None),
        "splits": (_SplitsOption, None),
        "contours_to": (_ContoursOption, None),
        "partial": (_PartialOption, False),
    }
    parameters = {**fixed, **_setting_options(reader), "as_json": (JsonOption, False)}
    run.__signature__ = inspect.Signature([  # type: ignore[attr-defined]
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=kind,
            default=inspect.Parameter.empty if default is ... else default,
        )
        for name, (kind, default) in parameters.items()
    ])  # fmt: skip
    run.__annotations__ = {name: kind for name, (kind, _) in parameters.items()}
    return run


def _settings(reader: CohortReader, chosen: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    try:
        return reader.settings(**{name: getattr(value, "value", value) for name, value in chosen.items()})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"--{str(first['loc'][0]).replace('_', '-')} {first['input']}: {first['msg']}.") from error


def _setting_options(reader: CohortReader) -> dict[str, tuple[Any, Any]]:
    options: dict[str, tuple[Any, Any]] = {}
    for name, field in reader.settings.model_fields.items():
        kind: Any = field.annotation
        bounds = {key: getattr(item, key) for item in field.metadata for key in ("ge", "le") if hasattr(item, key)}
        default = field.default
        if get_origin(kind) is Literal:
            kind = _enum(name, get_args(kind))
            default = kind(field.default)
        option = typer.Option(
            f"--{name.replace('_', '-')}", help=field.description, min=bounds.get("ge"), max=bounds.get("le")
        )
        options[name] = (Annotated[kind, option], default)
    return options


def _enum(name: str, values: tuple[Any, ...]) -> Any:
    return StrEnum(name, {str(value): str(value) for value in values})


def _read(reader: CohortReader, table: CohortTable, given: dict[str, Any]) -> None:
    from wsi_dino.pathology.cohorts.cohort_table import write_labels, write_own_split

    if not table.rows:
        raise CohortError(
            f"Reading {reader.name} in {given['folder']}: none of {table.n_expected} slides is there. Expected e.g. "
            f"{table.missing[-1] if table.missing else 'slides'}."
        )
    if given["splits"] is not None and not table.split:
        raise ConfigError(f"--splits: {reader.name} states no split of its own into train, val and test.")
    if given["labels"] is not None:
        _refuse_to_overwrite(given["labels"], table)
        write_labels(given["labels"], table)
    if given["splits"] is not None:
        write_own_split(given["splits"], table)
    failed_regions = _write_contours(table, given["contours_to"])
    n_failed = len(table.failed_checks) + len(failed_regions) + (0 if given["partial"] else len(table.missing))
    if given["as_json"]:
        console.print_json(_as_json(reader, table, given, failed_regions, n_failed))
    else:
        _print(reader, table, given, failed_regions)
    console.leave(n_failed)


def _refuse_to_overwrite(path: Path, table: CohortTable) -> None:
    """A table with other columns is somebody's own work."""
    if not path.is_file():
        return
    header = path.read_text(encoding="utf-8-sig", errors="replace").partition("\n")[0].strip()
    if header and header.split(",") != list(table.columns):
        raise ConfigError(
            f"Writing the label table {path}: it is there already and has other columns ({header[:80]}). "
            "Choose another name, or remove it."
        )


def _write_contours(table: CohortTable, folder: Path | None) -> dict[str, str]:
    """Write the regions of each slide; return why for those that failed."""
    if folder is None:
        return {}
    from wsi_dino.pathology.polygon_regions import convert_regions

    if not table.regions:
        raise ConfigError("--contours-to: no slide of this folder has a file of annotated regions beside it.")
    failed = {}
    for slide_id, path in table.regions.items():
        try:
            convert_regions(path, folder / f"{slide_id}.geojson")
        except SlideError as error:
            failed[slide_id] = str(error)
    return failed


def _print(reader: CohortReader, table: CohortTable, given: dict[str, Any], failed_regions: dict[str, str]) -> None:
    print(reader.title)
    print(f"slides: {len(table.rows)} of {table.n_expected}")
    for column in reader.targets:
        counts = ", ".join(f"{value} {n}" for value, n in table.counts(column).items())
        print(f"{column}: {counts}")
    for check in table.failed_checks:
        print(f"failed: {check.what}: expected {check.expected}, got {check.found}")
    if table.checks and not table.failed_checks:
        print(f"all {len(table.checks)} published counts agree")
    for text in (*table.notes, *table.remarks):
        print(f"note: {text}")
    for place in table.missing[:_SHOWN]:
        print(f"missing: {place}")
    if len(table.missing) > _SHOWN:
        print(f"missing: and {len(table.missing) - _SHOWN} more (all of them with --json)")
    if given["contours_to"] is not None:
        print(f"contours: {len(table.regions) - len(failed_regions)} slides in {given['contours_to']}")
    for slide_id, why in failed_regions.items():
        print(f"failed: contours of {slide_id}: {why}")
    if given["labels"] is not None:
        print(f"labels: {given['labels']}")
    if table.missing and not given["partial"]:
        print("Exit code 1, since the download is not whole; --partial accepts it.")


def _as_json(
    reader: CohortReader, table: CohortTable, given: dict[str, Any], failed_regions: dict[str, str], n_failed: int
) -> dict[str, Any]:
    written = {name: None if given[name] is None else str(given[name]) for name in ("labels", "splits", "contours_to")}
    return {
        "command": "cohort", "cohort": reader.name, "folder": str(given["folder"]), "n_failed": n_failed,
        "n_slides": len(table.rows), "n_expected": table.n_expected, 
        "n_patients": len({row["patient_id"] for row in table.rows}),
        "missing": list(table.missing), "counts": {column: table.counts(column) for column in reader.targets},
        "checks": [
            {"what": c.what, "expected": c.expected, "found": c.found, "ok": c.ok} for c in table.checks
        ],
        "notes": list(table.notes), "remarks": list(table.remarks), "failed_contours": failed_regions, **written,
    }  # fmt: skip
