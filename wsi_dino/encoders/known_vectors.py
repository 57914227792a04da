"""What each encoder makes of one fixed tile with seeded weights: a wrong preparation or pooling shows here.

Run ``python -m wsi_dino.encoders.known_vectors [NAME ...]`` after a deliberate change, to write the file anew.
Imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from wsi_dino.encoders.check import NotChecked
from wsi_dino.encoders.encoder import Encoder
from wsi_dino.encoders.record import EncoderSpec
from wsi_dino.encoders.seeded_weights import build_seeded
from wsi_dino.errors import EncoderError
from wsi_dino.provenance import environment, write_text_atomically

KNOWN_FILE = Path(__file__).with_name("known_vectors.json")
SEED = 0
# Measured: the vectors move by 1e-6 of their size between AVX-512 and AVX2, by up to 8e-4 without either, where the
# resize rounds some grey values the other way; a standard deviation that is 2 % wrong moves them by more than 1e-2.
TOLERANCE = 2e-3
_SMALLEST_PX = 64
_N_VALUES = 8
# Larger networks, in millions of parameters, are built with a few blocks only, and the largest not at all: what
# goes before and after the blocks is what this is about.
_WHOLE_BELOW_M = 200.0
_FEW_BLOCKS = 2
_NONE_ABOVE_M = 1500.0


class KnownVector(BaseModel):
    """Digest of one vector and what it was made with.

    Attributes:
        input_px: side of the square that the network saw.
        default_px: side that the record asks for.
        pooling: of the tokens.
        dim: length of the vector.
        n_blocks: of a network too large to be built whole for this; None for a whole one.
        layout: of the tensors that were seeded, see `seeded_weights.layout`; with another the values differ too.
        rms: root mean square of the vector.
        values: sums of the vector's values under fixed random signs, over the square root of `dim`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_px: int
    default_px: int
    pooling: str
    dim: int
    n_blocks: int | None = None
    layout: str
    rms: float
    values: tuple[float, ...]

    @property
    def made_at(self) -> tuple[int, int, str]:
        """What the record decides without the network: two sizes and the pooling."""
        return self.input_px, self.default_px, self.pooling

    def difference(self, other: KnownVector) -> float:
        """Return the largest difference of values, in units of the root mean square; infinite for other lengths."""
        if self.dim != other.dim or len(self.values) != len(other.values):
            return float("inf")
        pairs = [(self.rms, other.rms), *zip(self.values, other.values, strict=True)]
        return float(max(abs(mine - theirs) for mine, theirs in pairs) / self.rms)


def known_tile(side_px: int) -> np.ndarray:
    """Return a drawn tile, uint8 (side_px, side_px, 3), the same everywhere: whole numbers only.

    It has coarse and fine texture in every channel and another mean in each, so that channels, normalisation and
    interpolation all matter.
    """
    y, x = np.mgrid[:side_px, :side_px].astype(np.int64)
    channels = [
        (x * (3 + c) + y * (5 + 2 * c)) % 97 + (x * y + 7 * c * x) % 61 + 20 * c + y // 4 % 40 for c in range(3)
    ]
    return np.stack(channels, axis=2).clip(0, 255).astype(np.uint8)


def known_px(record: EncoderSpec) -> int:
    """Return the smallest allowed side of four patches or 64 px: the cheapest to compute."""
    multiple = record.input_multiple_px
    if multiple is None:
        return record.input_px
    least = 4 * record.patch_size if record.patch_size else _SMALLEST_PX
    side = -(-least // multiple) * multiple
    return side if record.allows_px(side) else record.input_px


def require_moderate(record: EncoderSpec) -> None:
    """Raise `NotChecked` when the network is too large for a known vector."""
    if (record.parameters_m or 0) > _NONE_ABOVE_M:
        raise NotChecked(f"{record.name} has {record.parameters_m:g} million parameters, too many for a known vector")


def seeded_encoder(record: EncoderSpec) -> tuple[Encoder, KnownVector]:
    """Return an encoder of `record` with seeded weights on the CPU in fp32, and its digest.

    Raises:
        NotChecked: the network is too large for this, or cannot be cut to fewer blocks.
    """
    require_moderate(record)
    millions = record.parameters_m or 0
    n_blocks = None if millions < _WHOLE_BELOW_M else _FEW_BLOCKS
    if n_blocks is not None:
        options = record.architecture_options | {"depth": n_blocks}
        record = record.model_copy(update={"architecture_options": options, "feature_layers": (0, 1)})
    try:
        backbone, layout = build_seeded(record, SEED)
    except TypeError as error:
        raise EncoderError(
            f"{record.name} has {millions:g} million parameters and cannot be cut to few blocks"
        ) from error
    encoder = Encoder(
        record,
        backbone,
        pooling=record.pooling,
        input_px=known_px(record),
        device="cpu",
        precision="fp32",
        weights_sha256=f"seeded:{SEED}",
        weights_source=f"seeded:{SEED}",
        workers=1,
    )
    return encoder, digest(encoder, layout, n_blocks)


def digest(encoder: Encoder, layout: str, n_blocks: int | None = None) -> KnownVector:
    """Return the digest of the vector that `encoder` gives for the known tile, which it must resize."""
    vector = encoder.embed(known_tile(encoder.input_px * 3 // 2 + 5)[None])[0].astype(np.float64)
    signs = np.random.RandomState(SEED).randint(0, 2, (_N_VALUES, len(vector))) * 2 - 1
    sums = signs @ vector / len(vector) ** 0.5
    return KnownVector(
        input_px=encoder.input_px,
        default_px=encoder.spec.input_px,
        pooling=encoder.pooling,
        dim=encoder.embed_dim,
        n_blocks=n_blocks,
        layout=layout,
        rms=_rounded(np.sqrt((vector**2).mean())),
        values=tuple(_rounded(value) for value in sums),
    )


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")


def read_known(path: Path = KNOWN_FILE) -> dict[str, KnownVector]:
    """Return the known vectors of a file by the names of their encoders.

    Raises:
        EncoderError: the file is absent or no file of known vectors.
    """
    try:
        vectors = json.loads(path.read_text(encoding="utf-8"))["vectors"]
        return {name: KnownVector.model_validate(fields) for name, fields in vectors.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise EncoderError(
            f"Reading known vectors {path}: {reason}. `wsi-dino encoders check NAME --write-known FILE` makes the file."
        ) from error


def made_with(path: Path = KNOWN_FILE) -> str:
    """Return the versions that the vectors of a file were made with, in words."""
    versions: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8")).get("made_with", {})
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def write_known(path: Path, vectors: Mapping[str, KnownVector]) -> None:
    """Write `vectors`, one a line, sorted by name."""
    versions = {package: environment()[package] for package in ("torch", "timm") if package in environment()}
    lines = [f"    {json.dumps(name)}: {vectors[name].model_dump_json(exclude_none=True)}" for name in sorted(vectors)]
    body = ",\n".join(lines)
    write_text_atomically(path, f'{{\n  "made_with": {json.dumps(versions)},\n  "vectors": {{\n{body}\n  }}\n}}\n')


def _main(names: list[str]) -> None:
    """Write the vectors of `names` anew; without names those of every listed encoder of images."""
    import gc
    import sys

    from wsi_dino.encoders.registry import builtin_records

    listed = {record.name: record for record in builtin_records() if record.dimensions == 2}
    vectors = {name: vector for name, vector in read_known().items() if name in listed} if KNOWN_FILE.is_file() else {}
    for name in names or listed:
        try:
            vectors[name] = seeded_encoder(listed[name])[1]
        except NotChecked as error:
            print(f"none for {name}: {error}", file=sys.stderr)
        gc.collect()
    write_known(KNOWN_FILE, vectors)


if __name__ == "__main__":
    import sys

    _main(sys.argv[1:])
