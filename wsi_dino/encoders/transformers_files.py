"""The files of a network of the transformers library: in a folder of the hub's form, in the hub's cache, on the hub."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_dino.encoders.hub import HubFile, ask_hub, cached_file, fetch_file, is_offline, published_sha256
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.weights import WeightsFile, verified_sha256
from wsi_dino.errors import HubError, WeightsError

CONFIG_FILE = "config.json"
# In the order in which they are preferred; an index lists the parts of a large network.
_WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_FOLDER_VARIABLE = "WSI_DINO_WEIGHTS_DIR"


@dataclass(frozen=True)
class NetworkFiles:
    """Where the files of one network lie.

    Attributes:
        encoder: name for messages.
        repository: ``OWNER/NAME`` on the hub, or a folder as the user typed it.
        folders: local folders, looked at before cache and hub.
        weights: a file of weights that the user named, or None.
        revision: commit of the hub repository, None for the newest.
    """

    encoder: str
    repository: str
    folders: tuple[Path, ...] = ()
    weights: Path | None = None
    revision: str | None = None

    @classmethod
    def of(cls, encoder: str, repository: str, near: Sequence[Path], revision: str | None = None) -> NetworkFiles:
        """Return the places for an encoder; `near` are the files and folders that the user named."""
        weights = next((path for path in near if path.is_file()), None)
        named = [path.parent if path.is_file() else path for path in near]
        variable = os.environ.get(_FOLDER_VARIABLE, "").strip()
        for folder in [*named, *([Path(variable)] if variable else [])]:
            named += [folder / name for name in _folder_names(encoder, repository)]
        candidates = [*named, Path(repository)]
        folders = tuple(folder for folder in candidates if (folder / CONFIG_FILE).is_file())
        return cls(encoder, repository, folders[:1], weights, revision)

    @property
    def is_local(self) -> bool:
        """Return whether the network lies in a folder of the user's."""
        return bool(self.folders)

    def find(self, *names: str) -> Path | None:
        """Return the first of the files that is there without a network, or None."""
        if self.is_local:
            return next((folder / name for folder in self.folders for name in names if (folder / name).is_file()), None)
        if not self._may_be_on_hub():
            return None
        found = (cached_file(HubFile(self.repository, name, self.revision)) for name in names)
        return next((path for path in found if path is not None), None)

    def require(self, *names: str) -> Path:
        """Return the first of the files that can be had, from the hub as the last resort, which is announced.

        Raises:
            WeightsError: there is none.
            HubError: the hub does not give any; `kind` tells why.
        """
        found = self.find(*names)
        if found is not None:
            return found
        if self.is_local or not self._may_be_on_hub():
            raise WeightsError(self._missing(names))
        return self._fetched(names)

    def _may_be_on_hub(self) -> bool:
        parts = self.repository.split("/")
        return len(parts) in (1, 2) and all(part.strip(".") for part in parts)

    def _missing(self, names: Sequence[str]) -> str:
        expected = " or ".join(names)
        if self.is_local:
            return f"Encoder {self.encoder}: the folder {self.folders[0]} has no {expected}."
        return (
            f"Encoder {self.encoder}: there is no folder {self.repository} with a {CONFIG_FILE} in it, as seen from "
            f"{Path.cwd()}. After hf/ comes such a folder, or OWNER/NAME of a repository of the hub."
        )

    def _fetched(self, names: Sequence[str]) -> Path:
        for name in names:
            wanted = HubFile(self.repository, name, self.revision)
            if not is_offline():
                print(f"Fetching {name} of {self.repository} for {self.encoder} ...", file=sys.stderr, flush=True)
            try:
                return fetch_file(wanted, ask_hub(wanted))
            except HubError as error:
                if error.kind != "no-file" or name == names[-1]:
                    raise HubError(f"Loading {self.encoder}: {error}\n{self._ways_out()}", error.kind) from error
        raise AssertionError("names is not empty")

    def _ways_out(self) -> str:
        return (
            f"Copy the repository ({CONFIG_FILE}, preprocessor_config.json, {_WEIGHTS_FILES[0]}) from a machine that "
            f"can reach it, and give hf/FOLDER, or --weights-dir with {self.repository} in it."
        )


def _folder_names(encoder: str, repository: str) -> tuple[str, ...]:
    """Return what a folder of the network may be called inside a folder of weights."""
    name = repository.strip("./")
    return encoder.replace("/", "__"), name, name.replace("/", "__")


def read_json(path: Path, encoder: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        WeightsError: the file holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"Encoder {encoder}: {path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise WeightsError(f"Encoder {encoder}: expected a JSON object in {path}, got a {type(content).__name__}.")
    return content


def weights_files(files: NetworkFiles) -> tuple[WeightsFile, ...]:
    """Return the file of weights, or all parts of a network that lies in several.

    Raises:
        WeightsError: there are none, or the list of the parts is wrong.
        HubError: the hub does not give them.
    """
    if files.weights is not None:
        return (WeightsFile(files.weights, "file"),)
    was_there = files.find(*_WEIGHTS_FILES) is not None
    first = files.require(*_WEIGHTS_FILES)
    paths = _parts(first, files) if first.suffix == ".json" else (first,)
    source: Any = "file" if files.is_local else "cache" if was_there else "hub"
    revision = None if files.is_local else first.parent.name
    return tuple(
        WeightsFile(path, source, revision, None if files.is_local else published_sha256(path)) for path in paths
    )


def _parts(index: Path, files: NetworkFiles) -> tuple[Path, ...]:
    listed = read_json(index, files.encoder).get("weight_map")
    names = sorted(set(listed.values())) if isinstance(listed, dict) else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise WeightsError(f"Encoder {files.encoder}: {index} does not list the files of its parts.")
    return tuple(files.require(name) for name in names)


def joint_sha256(record: EncoderSpec, found: Sequence[WeightsFile]) -> str:
    """Return the SHA-256 of the file, or of the digests of all parts, each compared with what the hub says.

    Raises:
        WeightsError: a file is not the published one.
    """
    digests = [verified_sha256(record, one) for one in found]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
