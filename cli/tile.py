"""`wsi-dino tile`: find tissue on slides and cut it into tiles."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import Device, DeviceOption, JsonOption, RunOption, WorkersOption
from wsi_dino.cli.options import panel_option as _option
from wsi_dino.errors import ConfigError

if TYPE_CHECKING:
    from wsi_dino.pathology.slide_tiler import TileRequest
    from wsi_dino.pathology.tiling_spec import TilingSpec
    from wsi_dino.pathology.tissue_spec import TissueSpec

_RESOLUTION, _TILES, _TISSUE = "Resolution", "Tiles", "Tissue (CLAM's parameters, under CLAM's names)"
_SHOWN = ["slide_id", "status", "tiles", "mpp_found", "level", "tissue_mm2", "seconds"]
_LONG_TABLE = 40


class Preset(StrEnum):
    """CLAM's presets."""

    biopsy = "biopsy"
    resection = "resection"
    tcga = "tcga"


class Segmenter(StrEnum):
    """What finds tissue."""

    clam = "clam"
    tiatoolbox_otsu = "tiatoolbox-otsu"
    tiatoolbox_morphological = "tiatoolbox-morphological"


class Compat(StrEnum):
    """Whose coordinates are reproduced."""

    clam = "clam"


class ContourRuleName(StrEnum):
    """CLAM's rules."""

    four_pt = "four_pt"
    four_pt_hard = "four_pt_hard"
    center = "center"  # type: ignore[assignment]  # str has a method of that name
    basic = "basic"


class Backend(StrEnum):
    """Slide readers."""

    auto = "auto"
    openslide = "openslide"
    tiled_tiff = "tiled-tiff"
    image = "image"


_Slides = Annotated[Path, typer.Argument(help="Folder of slides, at any depth, or one slide file.", show_default=False)]
_Mpp = Annotated[
    str | None,
    _option(_RESOLUTION, "--mpp", help="um/px of a tile, or `native` for level 0 as it is.  [default: 0.5]"),
]
_Level = Annotated[
    int | None, _option(_RESOLUTION, "--level", min=0, help="Read this pyramid level as it is, instead of --mpp.")
]
_MppTable = Annotated[
    Path | None,
    _option(_RESOLUTION, "--mpp-table", help="CSV slide_id,mpp (um/px at level 0) for slides whose file says none."),
]
_TrustTable = Annotated[
    bool, _option(_RESOLUTION, "--trust-table", help="Let --mpp-table win over what a file says of itself.")
]
_AssumeMpp = Annotated[
    float | None,
    _option(_RESOLUTION, "--assume-mpp", help="um/px at level 0 of slides that neither file nor table speaks of."),
]
_TilePx = Annotated[
    int, _option(_TILES, "--tile-px", min=1, help="Side of a tile as an encoder gets it.  [default: 224]")
]
_StridePx = Annotated[
    int | None,
    _option(
        _TILES,
        "--stride-px",
        min=1,
        help="Step of the grid in the same px; less than --tile-px overlaps.  [default: --tile-px]",
    ),
]
_MinTissue = Annotated[
    float | None,
    _option(
        _TILES,
        "--min-tissue",
        min=0,
        max=1,
        help="Smallest share of tissue in a tile; 0 keeps all that touch tissue.  [default: 0.25]",
    ),
]
_Padding = Annotated[
    bool | None,
    _option(
        _TILES,
        "--padding/--no-padding",
        help="Keep tiles that stick out of the slide, white there.  [default: no; with --compat clam: yes]",
    ),
]
_Compat = Annotated[
    Compat | None,
    _option(
        _TILES,
        "--compat",
        help="Give CLAM's own coordinates, value for value and in order. --level is then 0 unless given.",
    ),
]
_ContourRule = Annotated[
    ContourRuleName | None,
    _option(
        _TILES,
        "--contour-rule",
        help="With --compat clam: which points of a tile must lie in a contour.  [default: four_pt]",
    ),
]
_Contours = Annotated[
    Path | None,
    _option(
        _TISSUE,
        "--contours",
        help="Folder of SLIDE.geojson, e.g. RUN/contours edited in QuPath, that replace segmentation; "
        "areas of class `Ignore*` are cut out.",
    ),
]
_Segmenter = Annotated[
    Segmenter,
    _option(_TISSUE, "--segmenter", help="What finds tissue; tiatoolbox's need that extra.  [default: clam]"),
]
_Preset = Annotated[
    Preset | None,
    _option(_TISSUE, "--preset", help="CLAM's parameters for a kind of slide; single ones below override it."),
]
_NoPen = Annotated[
    bool | None,
    _option(
        _TISSUE,
        "--no-pen/--pen",
        help="Pen and ink are not tissue.  [default: --no-pen; with --compat clam: --pen]",
    ),
]
_SegLevel = Annotated[
    int | None,
    _option(
        _TISSUE,
        "--seg-level",
        min=-1,
        help="Level that is segmented; -1: the coarsest with a downsample of at most 64.  [default: -1]",
    ),
]
_Sthresh = Annotated[
    int | None,
    _option(_TISSUE, "--sthresh", min=0, max=255, help="Saturation above which a pixel is tissue.  [default: 8]"),
]
_Mthresh = Annotated[
    int | None, _option(_TISSUE, "--mthresh", min=1, help="Side of the median filter, odd.  [default: 7]")
]
_Close = Annotated[
    int | None, _option(_TISSUE, "--close", min=0, help="Side of the closing kernel; 0: none.  [default: 4]")
]
_UseOtsu = Annotated[
    bool | None,
    _option(
        _TISSUE,
        "--use-otsu/--no-use-otsu",
        help="Choose the saturation threshold from each slide's histogram.  [default: no]",
    ),
]
_AT = Annotated[
    float | None,
    _option(
        _TISSUE,
        "--a-t",
        min=0,
        help="Smallest piece of tissue, in squares of --ref-patch-size.  [default: 1; with --compat clam: 100]",
    ),
]
_AH = Annotated[
    float | None,
    _option(_TISSUE, "--a-h", min=0, help="Smallest hole, in the same squares.  [default: 1; with --compat clam: 16]"),
]
_MaxNHoles = Annotated[
    int | None,
    _option(
        _TISSUE,
        "--max-n-holes",
        min=0,
        help="Holes kept for each piece, the largest first.  [default: 64; with --compat clam: 8]",
    ),
]
_RefPatchSize = Annotated[
    int | None,
    _option(_TISSUE, "--ref-patch-size", min=1, help="Side of the unit of areas, in level-0 px.  [default: 512]"),
]
_Backend = Annotated[Backend, typer.Option("--backend", help="Slide reader; auto takes the fastest that fits.")]


def tile(
    ctx: typer.Context,
    slides: _Slides,
    run: RunOption,
    mpp: _Mpp = None,
    level: _Level = None,
    mpp_table: _MppTable = None,
    trust_table: _TrustTable = False,
    assume_mpp: _AssumeMpp = None,
    tile_px: _TilePx = 224,
    stride_px: _StridePx = None,
    min_tissue: _MinTissue = None,
    padding: _Padding = None,
    compat: _Compat = None,
    contour_rule: _ContourRule = None,
    contours: _Contours = None,
    segmenter: _Segmenter = Segmenter.clam,
    preset: _Preset = None,
    no_pen: _NoPen = None,
    seg_level: _SegLevel = None,
    sthresh: _Sthresh = None,
    mthresh: _Mthresh = None,
    close: _Close = None,
    use_otsu: _UseOtsu = None,
    a_t: _AT = None,
    a_h: _AH = None,
    max_n_holes: _MaxNHoles = None,
    ref_patch_size: _RefPatchSize = None,
    backend: _Backend = Backend.auto,
    workers: WorkersOption = 0,
    device: DeviceOption = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Find tissue on slides and cut it into tiles.

    Writes RUN/tiles/SLIDE.h5, RUN/contours/SLIDE.geojson (for QuPath), RUN/thumbnails/SLIDE.jpg and
    RUN/tiles.csv. Run again, it redoes only what is missing, broken or asked for differently.
    Exit code 1 when a slide failed or has no tissue.
    """
    rows = _tile(slides, run, make_request(ctx.params, explicit=on_command_line(ctx)), workers)
    counts = {status: sum(row["status"] == status for row in rows) for status in ("done", "empty", "failed")}
    summary = {"n_slides": len(rows), **counts, "tiles": sum(row.get("tiles") or 0 for row in rows)}
    if as_json:
        console.print_json({"command": "tile", "run": str(run), **summary, "rows": rows})
    else:
        _print_summary(rows, summary, run)
    console.leave(counts["failed"] + counts["empty"])


def _tile(slides: Path, run: Path, request: TileRequest, workers: int) -> list[dict[str, Any]]:
    from wsi_dino.pathology.discovery import discover_slides
    from wsi_dino.pathology.tiling import tile_slides
    from wsi_dino.run_folder import RunFolder

    sources = discover_slides(slides)
    with console.progress("tile", total=len(sources)) as progress:
        return tile_slides(sources, RunFolder(run), request, workers=workers, progress=progress)


def on_command_line(ctx: typer.Context) -> set[str]:
    """Names of the options that were typed, not taken from wsi-dino.yaml or left at their default."""
    return {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}


def make_request(given: dict[str, Any], explicit: set[str]) -> TileRequest:
    """Return what the options ask for.

    Args:
        given: every option by its Python name.
        explicit: those that were typed; they win over wsi-dino.yaml where two exclude each other.

    Raises:
        ConfigError: options exclude each other, or a value is wrong.
    """
    from wsi_dino.pathology.mpp import read_mpp_table
    from wsi_dino.pathology.slide_tiler import TileRequest

    tiling = _tiling_spec(given, explicit)
    folder, table = (None if given[name] is None else Path(given[name]) for name in ("contours", "mpp_table"))
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"Reading contours: --contours {folder} is not a folder of SLIDE.geojson files.")
    if given["trust_table"] and table is None:
        raise ConfigError("--trust-table needs --mpp-table CSV: there is no table to trust.")
    assumed = given["assume_mpp"]
    if assumed is not None and not 0.01 <= assumed <= 100:
        raise ConfigError(f"--assume-mpp takes um/px at level 0 between 0.01 and 100, e.g. 0.25; got {assumed}.")
    return TileRequest(
        tissue=_tissue_spec(given, explicit),
        tiling=tiling,
        mpp_table=None if table is None else read_mpp_table(table),
        trust_table=given["trust_table"],
        assume_mpp=assumed,
        contours=folder,
        backend=str(given["backend"]),
    )


def _tiling_spec(given: dict[str, Any], explicit: set[str]) -> TilingSpec:
    from wsi_dino.pathology.tiling_spec import TilingSpec

    is_clam = given["compat"] is not None
    mpp, level = _resolution(given, explicit)
    _refuse_mixture(given, explicit, is_clam)
    chosen: dict[str, Any] = {
        "mpp": mpp, "level": level, "tile_px": given["tile_px"], "stride_px": given["stride_px"],
        "padding": is_clam if given["padding"] is None else given["padding"],
    }  # fmt: skip
    if is_clam:
        chosen |= {"compat": "clam", "contour_rule": str(given["contour_rule"] or "four_pt"), "min_tissue": 0.0}
    elif given["min_tissue"] is not None:
        chosen["min_tissue"] = given["min_tissue"]
    return TilingSpec.checked(**chosen)


def _resolution(given: dict[str, Any], explicit: set[str]) -> tuple[float | str | None, int | None]:
    """Choose between --mpp and --level: what was typed wins over wsi-dino.yaml; two of one kind exclude each other."""
    mpp, level = given["mpp"], given["level"]
    if mpp is not None and level is not None and ("mpp" in explicit) == ("level" in explicit):
        raise ConfigError(f"--mpp {mpp} and --level {level} exclude each other: give one of them.")
    if level is not None and "mpp" not in explicit:
        return None, level
    if given["compat"] is None:
        return (0.5 if mpp is None else _parsed_mpp(mpp)), None
    if "mpp" in explicit and mpp != "native":
        raise ConfigError(
            f"--compat clam knows levels and no um/px: give --level N (default 0) instead of --mpp {mpp}."
        )
    return None, 0


def _parsed_mpp(text: str) -> float | str:
    if text == "native":
        return text
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--mpp takes um/px, e.g. 0.5, or `native`; got {text!r}.") from None


def _refuse_mixture(given: dict[str, Any], explicit: set[str], is_clam: bool) -> None:
    if not is_clam and "contour_rule" in explicit:
        raise ConfigError("--contour-rule is CLAM's: give it with --compat clam. The global grid goes by --min-tissue.")
    if not is_clam:
        return
    if "min_tissue" in explicit:
        raise ConfigError("--min-tissue does not go with --compat clam, which goes by --contour-rule.")
    if given["no_pen"] and "no_pen" in explicit:
        raise ConfigError("--no-pen does not go with --compat clam: CLAM takes pen for tissue, and so must we.")
    if str(given["segmenter"]) != "clam" and "segmenter" in explicit:
        raise ConfigError(f"--segmenter {given['segmenter']} does not go with --compat clam.")


def _tissue_spec(given: dict[str, Any], explicit: set[str]) -> TissueSpec:
    from wsi_dino.pathology.tissue_spec import CLAM_DEFAULTS, TissueSpec

    is_clam = given["compat"] is not None
    overrides = {name: given[name] for name in CLAM_DEFAULTS if given[name] is not None}
    if is_clam:
        overrides["no_pen"] = False
    else:
        overrides["segmenter"] = str(given["segmenter"])
        overrides["no_pen"] = True if given["no_pen"] is None else given["no_pen"]
    if given["preset"] is not None:
        return TissueSpec.preset(str(given["preset"]), **overrides)
    return TissueSpec.clam_defaults(**overrides) if is_clam else TissueSpec.checked(**overrides)


def _print_summary(rows: list[dict[str, Any]], summary: dict[str, Any], run: Path) -> None:
    unfinished = [row for row in rows if row["status"] != "done"]
    console.print_table(list(rows if len(rows) <= _LONG_TABLE else unfinished), _SHOWN)
    for row in unfinished:
        print(f"{row['status']}: {row['slide_id']}: {row['reason']}")
    print(
        f"{summary['done']} of {summary['n_slides']} slides done, {summary['empty']} empty, "
        f"{summary['failed']} failed: {summary['tiles']} tiles. Table: {run / 'tiles.csv'}"
    )
