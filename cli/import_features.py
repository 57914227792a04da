"""`wsi-dino import-features`: take over what CLAM or TRIDENT made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import EncoderOption, JsonOption, RunOption

_SHOWN = ["slide_id", "status", "tiles", "embed_dim", "layout"]
_LONG_TABLE = 40


def import_features(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="CLAM's feature folder (h5_files or pt_files in it), TRIDENT's features_ENCODER, or one file.",
            show_default=False,
        ),
    ],
    run: RunOption,
    encoder: EncoderOption,
    coords: Annotated[
        Path | None,
        typer.Option(
            "--coords",
            help="Folder of the tool's own tile files (CLAM: patches, TRIDENT: patches); needed for .pt files.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take features that CLAM or TRIDENT made into a run.

    They may be h5 or pt files; all are checked and marked as imported.
    Writes RUN/features/ENCODER/SLIDE.h5 and RUN/embed.csv. Exit code 1 when a file could not be taken.
    """
    from wsi_dino.pathology.feature_import import find_sources
    from wsi_dino.pathology.feature_import import import_features as take_in
    from wsi_dino.run_folder import RunFolder

    sources = find_sources(source, coords)
    with console.progress("import", total=len(sources)) as progress:
        rows = take_in(RunFolder(run), sources, encoder, progress=progress)
    failed = [row for row in rows if row["status"] != "done"]
    if as_json:
        counts = {"done": len(rows) - len(failed), "failed": len(failed)}
        console.print_json({"command": "import-features", "run": str(run), "encoder": encoder, **counts, "rows": rows})
    else:
        console.print_table(rows if len(rows) <= _LONG_TABLE else failed, _SHOWN)
        for row in failed:
            console.say(f"failed: {row['slide_id']}: {row['reason']}")
        console.say(f"{len(rows) - len(failed)} of {len(rows)} files imported as {encoder} into {run}")
    console.leave(len(failed))
