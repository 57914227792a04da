"""Is a file of weights what it should be: its bytes, what opening it would do, the network it is for?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wsi_dino.encoders.bundle_manifest import MANIFEST_FILE, read_manifest
from wsi_dino.encoders.loading import load_backbone, network_and_state
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.registry import family_of, records
from wsi_dino.encoders.weights import WeightsFile, expected_digests, verified_sha256
from wsi_dino.encoders.weights_files import Files
from wsi_dino.errors import WeightsError

_FOLDERS_LOOKED_UP = 3


@dataclass(frozen=True)
class Verdict:
    """A file that passed.

    Attributes:
        path: the file.
        encoder: whose weights they are; None where nobody says.
        sha256: of the file, read anew.
        compared_with: who said what the SHA-256 must be: ``"record"``, ``"hub"``, ``"bundle"``, ``"name of the
            file"``; empty where nobody did.
        n_tensors: how many tensors it holds; None for a file that is a whole network.
        fits: whether it was found to fit the network of `encoder`, tensor by tensor.
    """

    path: Path
    encoder: str | None
    sha256: str
    compared_with: tuple[str, ...]
    n_tensors: int | None
    fits: bool


def verify_weights(
    record: EncoderSpec, files: Files, weights: Path | None = None, weights_dir: Path | None = None
) -> Verdict:
    """Check files against what is known of them and against the network of `record`, which is made without memory.

    Args:
        record: of the encoder.
        files: as `find_files` found them.
        weights: the file that the user named, if so.
        weights_dir: the folder that the user named, if so.

    Raises:
        WeightsError: wrong checksum, truncated, corrupt, holds code, or is of another architecture.
    """
    found = files[0]
    digests = [verified_sha256(record, one, reread=True) for one in files]
    compared_with = tuple(expected_digests(record, found))
    if hasattr(family_of(record), "load"):
        loaded = load_backbone(record, weights=weights, weights_dir=weights_dir)
        return Verdict(found.path, record.name, loaded.sha256, compared_with, None, True)
    from wsi_dino.encoders.checkpoint import read_checkpoint, require_fit

    if record.dimensions == 3:
        return Verdict(found.path, record.name, digests[0], compared_with, len(read_checkpoint(found.path)), False)
    network, state = network_and_state(record, found.path, device="meta")
    require_fit(network, state, record.name, found.path)
    return Verdict(found.path, record.name, digests[0], compared_with, len(state), True)


def verify_file(path: Path) -> Verdict:
    """Check a file of which nothing is said; the encoder is taken from its bundle or its checksum, if these know it.

    Raises:
        WeightsError: as for `verify_weights`, or there is no such file.
    """
    if not path.is_file():
        raise WeightsError(f"Checking weights: {path} is neither a file nor the name of an encoder.")
    from wsi_dino.encoders.registry import get_record

    bundled = _bundled(path)
    if bundled is not None:
        name, one = bundled
        return verify_weights(get_record(name, near=[path.parent]), (one,), weights=path)
    found = WeightsFile(path, "file")
    unknown = EncoderSpec(
        name=path.name, architecture="", embed_dim=0, pooling="output", poolings=("output",), source="", licence=""
    )
    sha256 = verified_sha256(unknown, found, reread=True)
    owner = next((record for record in records() if record.weights_sha256 == sha256), None)
    if owner is not None:
        verdict = verify_weights(owner, (found,), weights=path)
        return Verdict(path, owner.name, sha256, ("record",), verdict.n_tensors, verdict.fits)
    from wsi_dino.encoders.checkpoint import read_checkpoint

    return Verdict(path, None, sha256, tuple(expected_digests(None, found)), len(read_checkpoint(path)), False)


def _bundled(path: Path) -> tuple[str, WeightsFile] | None:
    """Return encoder and origin of a file that lies in a bundle, or None."""
    for folder in path.parents[:_FOLDERS_LOOKED_UP]:
        manifest = read_manifest(folder) if (folder / MANIFEST_FILE).is_file() else None
        if manifest is not None and (folder / manifest.file).samefile(path):
            return manifest.encoder, WeightsFile(path, "file", manifest.revision, manifest.sha256)
    return None
