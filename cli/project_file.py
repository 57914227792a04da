"""`wsi-dino.yaml`: what a project does not want to type each time. Flags override it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from wsi_dino.encoders.plugins import use_plugin_files
from wsi_dino.errors import ConfigError, nearest_name
from wsi_dino.remote import is_remote

PROJECT_FILE = "wsi-dino.yaml"


class ProjectFile(BaseModel):
    """Content of wsi-dino.yaml. Relative paths are relative to the file's folder.

    Attributes:
        slides: folder of slides for `tile`.
        labels: CSV with ``slide_id``, optional ``patient_id`` and target columns, for `mil`.
        run: folder of the run, for every verb.
        encoders: Python files with encoders of your own, see docs/add-an-encoder.md; their code is run.
        tile, embed, mil: options of these verbs by their long names, with ``_`` for ``-``.
        launchers: settings of ``--launcher``, by its name and then by key, see docs/scale.md.
        tasks: for ``mil --task NAME``: the target column and, for text labels, the order of classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    slides: Path | None = None
    labels: Path | None = None
    run: Path = Path("wsi-dino-run")
    encoders: list[Path] = []
    tile: dict[str, Any] = {}
    embed: dict[str, Any] = {}
    mil: dict[str, Any] = {}
    launchers: dict[Literal["local", "slurm", "ray"], dict[str, Any]] = {}
    tasks: dict[str, dict[str, Any]] = {}


def read_project_file(folder: Path | None = None) -> ProjectFile | None:
    """Read wsi-dino.yaml of `folder` (the current one by default), or return None when there is none.

    Raises:
        ConfigError: it is no YAML, or has an unknown key or a wrong type.
    """
    folder = folder or Path.cwd()
    path = folder / PROJECT_FILE
    if not path.is_file():
        return None
    try:
        project = ProjectFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
        raise ConfigError(f"Reading {path}: {_first_problem(error)}. `wsi-dino init` writes a right one.") from error
    return project.model_copy(update=_absolute(project, folder))


def _absolute(project: ProjectFile, folder: Path) -> dict[str, Path | list[Path]]:
    paths = {"slides": project.slides, "labels": project.labels, "run": project.run}
    absolute = {key: path if is_remote(path) else folder / path for key, path in paths.items() if path is not None}
    return {**absolute, "encoders": [folder / path for path in project.encoders]}


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        known = nearest_name(place, ProjectFile.model_fields)
        return f"{place}: {first['msg']}.{known}".rstrip(".")
    return str(error)


def defaults(command: Any) -> dict[str, dict[str, Any]]:
    """Return click's default map: for each verb the values that wsi-dino.yaml gives its options.

    The plug-ins that it names are noted; they are loaded when an encoder is first asked for.

    Raises:
        ConfigError: a section names an option that its verb does not have.
    """
    project = read_project_file()
    use_plugin_files(project.encoders if project else [])
    if project is None:
        return {}
    paths = {"slides": project.slides, "labels": project.labels, "run": project.run}
    shared = {key: str(path) for key, path in paths.items() if path is not None}
    return {verb: _verb_defaults(verb, function.params, project, shared) for verb, function in command.commands.items()}


def _verb_defaults(verb: str, parameters: list[Any], project: ProjectFile, shared: dict[str, str]) -> dict[str, Any]:
    known = {name: parameter for parameter in parameters for name in _spellings(parameter)}
    section = getattr(project, verb) if verb in ("tile", "embed", "mil") else {}
    result: dict[str, Any] = {known[key].name: value for key, value in shared.items() if key in known}
    for key, value in section.items():
        if key not in known:
            raise ConfigError(
                f"Reading {PROJECT_FILE}: section {verb} has no option {key!r}.{nearest_name(key, known)} "
                f"`wsi-dino {verb} --help` lists them."
            )
        result[known[key].name] = _several(value) if getattr(known[key], "multiple", False) else value
    return result


def _several(value: Any) -> list[Any]:
    """Return the values of an option that may be repeated; ``set: {key: value}`` is ``--set key=value``."""
    if isinstance(value, dict):
        return [f"{name}={each}" for name, each in value.items()]
    return value if isinstance(value, list) else [value]


def _spellings(parameter: Any) -> list[str]:
    """Return the long names of an option (``--tile-px`` is ``tile_px``), or the name of an argument."""
    if parameter.param_type_name == "argument":
        return [parameter.name]
    return [name[2:].replace("-", "_") for name in parameter.opts if name.startswith("--")]
