"""What lies beside the weights in a folder made for machines without a network: ``NAME/bundle.json``."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from wsi_dino.errors import WeightsError

MANIFEST_FILE = "bundle.json"


class BundleManifest(BaseModel):
    """Where bundled weights came from, and what they must be.

    Attributes:
        format: of this file.
        encoder: name of the encoder.
        file: the weights, a path relative to the manifest's folder.
        sha256: of that file.
        size_bytes: of that file.
        companions: SHA-256 of other files beside it that the encoder needs, by name.
        source: hub repository or package.
        revision: commit or version at the source; None where it is not known.
        licence, licence_url, obligations: terms under which the weights were received, as in the record.
        record: the encoder's record when the bundle was made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["wsi-dino-weights/1"] = "wsi-dino-weights/1"
    encoder: str
    file: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int
    companions: dict[str, str] = {}
    source: str
    revision: str | None = None
    licence: str
    licence_url: str = ""
    obligations: tuple[str, ...] = ()
    record: dict[str, Any] = {}

    @field_validator("file", "companions")
    @classmethod
    def _stay_inside(cls, files: str | dict[str, str]) -> str | dict[str, str]:
        for file in [files] if isinstance(files, str) else files:
            path = PurePosixPath(file)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise ValueError("must be a path inside the folder")
        return files

    def digests(self, folder: Path) -> dict[Path, str]:
        """Return the SHA-256 that each file must have, the weights first; `folder` is the manifest's."""
        return {folder / name: digest for name, digest in {self.file: self.sha256, **self.companions}.items()}


def folder_name(encoder: str) -> str:
    """Return the name of an encoder's folder in a folder of weights; it may lie on any kind of disk.

    Examples:
        >>> folder_name("timm/vit_tiny_patch16_224"), folder_name("openclip/ViT-B-32:openai")
        ('timm__vit_tiny_patch16_224', 'openclip__ViT-B-32__openai')
    """
    return encoder.replace("/", "__").replace(":", "__")


def read_manifest(folder: Path) -> BundleManifest | None:
    """Return the manifest of an encoder's folder, or None when there is none.

    Raises:
        WeightsError: it is damaged, or the file it names is absent.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    try:
        manifest = BundleManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise WeightsError(
            f"Reading {path}: {place}: {first['msg']}. Make the bundle again: `wsi-dino weights bundle`."
        ) from error
    for file in (manifest.file, *manifest.companions):
        if not (folder / file).is_file():
            raise WeightsError(f"Reading {path}: it names {file}, which is not there. Copy the folder again.")
    return manifest
