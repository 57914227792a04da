"""Versions of what decides a result on radiographs or volumes."""

from __future__ import annotations

from wsi_dino.provenance import environment


def versions() -> dict[str, str]:
    """Return `environment` with the libraries that read volumes and DICOM files and that solve for probes."""
    return environment("nibabel", "pydicom", "scipy", "scikit-learn")
