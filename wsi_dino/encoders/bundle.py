"""A folder of weights for machines without a network: checked files, each with what it is and where it came from."""

from __future__ import annotations

import shutil
from pathlib import Path

from wsi_dino.encoders.bundle_manifest import MANIFEST_FILE, BundleManifest, folder_name, read_manifest
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.weights import WeightsFile
from wsi_dino.encoders.weights_check import verify_weights
from wsi_dino.errors import WeightsError
from wsi_dino.provenance import file_sha256, write_atomically, write_json_atomically


def bundle_weights(record: EncoderSpec, found: WeightsFile, folder: Path) -> BundleManifest:
    """Copy the weights of an encoder into `folder`, with their manifest; ``--weights-dir`` takes that folder.

    The file is verified before it is copied and its copy is read again before it gets its name; the
    manifest comes last, so that a bundle is whole or is none.

    Args:
        record: of the encoder.
        found: its weights on this machine.
        folder: of the bundle; made if need be.

    Raises:
        WeightsError: the file is damaged or of another network.
        StorageError: `folder` cannot be written, or the disk is full.
    """
    verdict = verify_weights(record, found)
    manifest = BundleManifest(
        encoder=record.name,
        # a user's own file keeps its name: the name at the source may hold digits of another checksum
        file=found.path.name if found.source == "file" else record.weights_file,
        sha256=verdict.sha256,
        size_bytes=found.path.stat().st_size,
        source=record.source if found.source != "file" or found.revision else f"file:{found.path.name}",
        revision=found.revision,
        licence=record.licence,
        licence_url=record.licence_url,
        obligations=record.obligations,
        record=record.model_dump(mode="json"),
    )
    place = folder / folder_name(record.name)
    if not _is_there(place, manifest):
        _copy(found.path, place / manifest.file, manifest.sha256)
    write_json_atomically(place / MANIFEST_FILE, manifest)
    return manifest


def bundled_encoders(folder: Path) -> list[str]:
    """Return the names of the encoders in a folder of weights, in order, as their manifests say.

    Raises:
        WeightsError: a manifest is damaged.
    """
    manifests = (read_manifest(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST_FILE}")))
    return [manifest.encoder for manifest in manifests if manifest is not None]


def _is_there(place: Path, wanted: BundleManifest) -> bool:
    try:
        there = read_manifest(place)
    except WeightsError:
        return False
    same = there is not None and (there.file, there.sha256) == (wanted.file, wanted.sha256)
    return same and file_sha256(place / wanted.file) == wanted.sha256


def _copy(source: Path, target: Path, sha256: str) -> None:
    with write_atomically(target) as temporary:
        shutil.copyfile(source, temporary)
        if file_sha256(temporary) != sha256:
            raise WeightsError(f"Copying {source} to {target}: the copy differs from the file. Check the disk.")
