"""ROOTS.yaml: where the data of the paper's datasets, and of one's own, lies on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from wsi_dino.errors import ConfigError, nearest_name
from wsi_dino.remote import as_url, is_remote
from wsi_dino.run_folder import safe_name

KindName = Literal["chest-xray", "ct", "slides", "segment", "em"]
OptionValue = str | bool | int | float | list[str | int | float]
_DEFAULTS = "options"
# kind of task and name in the published tables of each dataset of the paper
PAPER_DATASETS: Mapping[str, tuple[KindName, str]] = {
    "nih14": ("chest-xray", "NIH-14"),
    "rsna": ("chest-xray", "RSNA-Pneumonia"),
    "camelyon16": ("slides", "Camelyon16"),
    "camelyon17": ("slides", "Camelyon17 Unseen"),
    "bcnb": ("slides", "BCNB"),
    "ct-rate": ("ct", "CT-RATE"),
    **{f"msd-task{number:02d}": ("segment", f"MSD Task{number:02d}") for number in range(1, 11)},
    **{f"cremi-{letter}": ("em", f"CREMI-{letter.upper()}") for letter in "abc"},
    "ac34": ("em", "AC3/4"),
    "wafer4": ("em", "Wafer4"),
    "autopet2": ("segment", "AutoPET-II"),
    "hecktor2022": ("segment", "HECKTOR 2022"),
}
PUBLISHED_NAMES = {published: name for name, (_, published) in PAPER_DATASETS.items()}


class _Given(BaseModel):
    """One entry as it is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path
    kind: KindName | None = None
    form: str | None = None
    labels: Path | None = None
    tasks: list[str] = []
    target: str | None = None
    files: dict[str, str] = {}
    options: dict[str, dict[str, OptionValue]] = {}


@dataclass(frozen=True)
class Entry:
    """One dataset at hand.

    Attributes:
        name: of the paper, or one's own.
        kind: which track it belongs to.
        root: its folder.
        form: how its files are laid out: the name that the command's ``--dataset`` takes (``msd-task04``); empty for
            a table of one's own.
        labels: table of labels.
        tasks: of slides: names of tasks that are run.
        target: of slides: the column to predict.
        files: of electron microscopy of one's own: ``train-image`` and so on, below `root`.
        options: for each command its options, as on the command line, without dashes.
    """

    name: str
    kind: KindName
    root: Path
    form: str = ""
    labels: Path | None = None
    tasks: tuple[str, ...] = ()
    target: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def is_of_paper(self) -> bool:
        """Whether its results belong into the paper's tables."""
        return self.name in PAPER_DATASETS

    @property
    def folder(self) -> Path:
        """Where its results lie, below the run."""
        return Path("runs") / safe_name(self.name)

    def options_of(self, command: str) -> dict[str, Any]:
        """Return the options of one command."""
        return dict(self.options.get(command, {}))


def read_roots(path: Path, commands: Mapping[str, Sequence[str]]) -> dict[str, Entry]:
    """Read the file.

    Args:
        path: YAML: names of datasets, each with a folder or a mapping; ``options`` holds options for all.
        commands: for each kind, the commands that may have options.

    Raises:
        ConfigError: it is missing or broken, names no dataset or an unknown key, or a folder is not there.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"Reading {path}: there is no such file. Write NAME: FOLDER lines (docs/paper.md)."
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"Reading {path}: {str(error).splitlines()[0]}. Expected YAML: NAME: FOLDER.") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"Reading {path}: expected a mapping of names of datasets to folders, got {content!r}.")
    shared = content.pop(_DEFAULTS, None) or {}
    every = {command for names in commands.values() for command in names}
    if not isinstance(shared, dict) or any(not isinstance(values, dict) for values in shared.values()):
        raise ConfigError(f"{path}, options: expected commands with their options, as in segment: {{epochs: 5}}.")
    _check_commands(path, _DEFAULTS, shared, sorted(every))
    entries = {}
    for name, given in content.items():
        entry = _entry(path, str(name), given, shared)
        _check_commands(path, entry.name, given.get("options", {}) if isinstance(given, dict) else {},
                        commands[entry.kind])  # fmt: skip
        entries[entry.name] = entry
    folders = {entry.folder for entry in entries.values()}
    if not entries or len(folders) < len(entries):
        raise ConfigError(f"{path}: {'two names differ in case or signs alone' if entries else 'no dataset is named'}.")
    return entries


def _entry(path: Path, name: str, given: Any, shared: Mapping[str, Mapping[str, Any]]) -> Entry:
    where = f"{path}, {name}"
    try:
        read = _Given.model_validate({"root": given} if isinstance(given, str) else given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "entry"
        raise ConfigError(f"{where}: {key}: {first['msg']}. Expected a folder, or root: FOLDER and more.") from error
    known = PAPER_DATASETS.get(name)
    if known is not None and read.kind not in (None, known[0]):
        raise ConfigError(f"{where}: kind {read.kind}: {name} is {known[0]}. Leave kind out, or take another name.")
    kind = known[0] if known else read.kind
    if kind is None:
        raise ConfigError(
            f"{where}: not a dataset of the paper.{nearest_name(name, list(PAPER_DATASETS))} For one of your own say "
            "kind: chest-xray, ct, slides, segment or em."
        )
    if is_remote(read.root):
        raise ConfigError(
            f"{where}: {as_url(read.root)}: addresses are not taken here. Copy the data, or mount the store, and name "
            "that folder."
        )
    base = path.resolve().parent
    root = base / read.root
    if not root.is_dir():
        raise ConfigError(f"{where}: there is no folder {root}. Paths are taken from the folder of {path.name}.")
    options = {command: {**shared.get(command, {}), **read.options.get(command, {})}
               for command in dict.fromkeys([*shared, *read.options])}  # fmt: skip
    return Entry(
        name, kind, root, form=read.form or (name if known else ""),
        labels=None if read.labels is None else _labels(where, base, root, read.labels),
        tasks=tuple(read.tasks), target=read.target, files=read.files, options=options,
    )  # fmt: skip


def _labels(where: str, base: Path, root: Path, labels: Path) -> Path:
    """Find a table beside ROOTS.yaml or in the dataset's folder."""
    for folder in (base, root):
        if (folder / labels).is_file():
            return folder / labels
    raise ConfigError(f"{where}: labels: there is no file {labels} in {base} or {root}.")


def _check_commands(path: Path, where: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    for command in options:
        if command not in known:
            raise ConfigError(
                f"{path}, {where}: options of {command!r}: expected one of {', '.join(known)}."
                f"{nearest_name(str(command), list(known))}"
            )
