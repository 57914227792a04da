"""A folder of weights for machines without a network: checked files, each with what it is and where it came from."""

from __future__ import annotations

import shutil
from pathlib import Path

from wsi_dino.encoders.bundle_manifest import MANIFEST_FILE, BundleManifest, folder_name, read_manifest
from wsi_dino.encoders.file_digests import remembered_sha256
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.weights_check import verify_weights
from wsi_dino.encoders.weights_files import Files, is_its_own_file
from wsi_dino.errors import WeightsError
from wsi_dino.provenance import file_sha256, write_atomically, write_json_atomically


def bundle_weights(record: EncoderSpec, files: Files, folder: Path, weights: Path | None = None) -> BundleManifest:
    """Copy the files of an encoder into `folder`, with their manifest; ``--weights-dir`` takes that folder.

    They are verified before they are copied and each copy is read again before it gets its name; the
    manifest comes last, so that a bundle is whole or is none.

    Args:
        record: of the encoder.
        files: its weights and what belongs to them on this machine, as `find_files` found them.
        folder: of the bundle; made if need be.
        weights: the file that the user named, if so.

    Raises:
        WeightsError: a file is damaged or of another network, or the encoder is itself a file.
        StorageError: `folder` cannot be written, or the disk is full.
    """
    if is_its_own_file(record):
        path = files[0].path
        raise WeightsError(f"Bundling {record.name}: it is the file {path} itself: copy that and name it there.")
    verify_weights(record, files, weights=weights)
    manifest = _manifest(record, files)
    place = folder / folder_name(record.name)
    for one, (target, sha256) in zip(files, manifest.digests(place).items(), strict=True):
        if not target.is_file() or file_sha256(target) != sha256:
            _copy(one.path, target, sha256)
    write_json_atomically(place / MANIFEST_FILE, manifest)
    return manifest


def _manifest(record: EncoderSpec, files: Files) -> BundleManifest:
    first = files[0]
    is_own = first.source == "file" and first.revision is None
    return BundleManifest(
        encoder=record.name,
        # a user's own file keeps its name: the name at the source may hold digits of another checksum
        file=record.weights_file if first.source != "file" and len(files) == 1 else first.path.name,
        sha256=remembered_sha256(first.path),
        size_bytes=first.path.stat().st_size,
        companions={one.path.name: remembered_sha256(one.path) for one in files[1:]},
        source=f"file:{first.path.name}" if is_own else record.source,
        revision=first.revision,
        licence=record.licence,
        licence_url=record.licence_url,
        obligations=record.obligations,
        record=record.model_dump(mode="json"),
    )


def bundled_encoders(folder: Path) -> list[str]:
    """Return the names of the encoders in a folder of weights, in order, as their manifests say.

    Raises:
        WeightsError: a manifest is damaged.
    """
    manifests = (read_manifest(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST_FILE}")))
    return [manifest.encoder for manifest in manifests if manifest is not None]


def _copy(source: Path, target: Path, sha256: str) -> None:
    with write_atomically(target) as temporary:
        shutil.copyfile(source, temporary)
        if file_sha256(temporary) != sha256:
            raise WeightsError(f"Copying {source} to {target}: the copy differs from the file. Check the disk.")
