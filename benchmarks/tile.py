"""Seconds per slide of `wsi-dino tile`, beside other tools on the same work.

    python benchmarks/tile.py [--slides FOLDER] [--work FOLDER] [--peers PYTHON ...] [--repeats 3]

Prints, for each slide, the best of several repeats of: opening the slide, finding the tissue and placing
the tiles in this process (what CLAM calls segmentation and coordinates); the same with contours, thumbnail
and tile file written; and the whole command in a process of its own. Each PYTHON of --peers is the
interpreter of another environment; of tiatoolbox, hs2p and lazyslide those that it can import do the same
work there, tissue mask and coordinates at 224 px, timed after their imports.

Slides are those of FOLDER and two that are drawn once into the work folder: 20,000 x 20,000 px with three
levels and 40,960 x 40,960 px with four, JPEG tiles.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wsi_dino.pathology.discovery import SlideSource, discover_slides
from wsi_dino.pathology.slide import open_slide
from wsi_dino.pathology.slide_tiler import TileRequest, place_tiles
from wsi_dino.pathology.synthetic import TissuePainter, write_pyramid
from wsi_dino.pathology.tiling import tile_slides
from wsi_dino.pathology.tiling_spec import TilingSpec
from wsi_dino.pathology.tissue_spec import TissueSpec
from wsi_dino.run_folder import RunFolder

_DRAWN = {"drawn-20000": (20_000, (1, 4, 16)), "drawn-40960": (40_960, (1, 4, 16, 64))}
_PEERS_PROGRAM = Path(__file__).with_name("tile_peers.py")
_COMMAND = "from wsi_dino.cli import main; main()"


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    sources = discover_slides(arguments.slides) if arguments.slides else []
    sources += [SlideSource(name, _draw(arguments.work, name)) for name in _DRAWN]
    width = max(len(source.slide_id) for source in sources)
    print(f"seconds, best of {arguments.repeats}; CPU s: of the command, its start included")
    print(f"{'slide':{width}}  tissue+coords  CLAM compat  with files   command     CPU s  tiles")
    for source in sources:
        default, clam = _requests()
        n_tiles = _place(source, default)
        alone = _best(lambda s=source, r=default: _place(s, r), arguments.repeats)
        compat = _best(lambda s=source, r=clam: _place(s, r), arguments.repeats)
        files = _best(lambda s=source, r=default: _with_files(s, r), arguments.repeats)
        cpu = []
        command = _best(lambda s=source, c=cpu: c.append(_command(s)), arguments.repeats)
        times = f"{alone:13.3f}  {compat:11.3f}  {files:10.3f}  {command:8.3f}  {min(cpu):8.3f}"
        print(f"{source.slide_id:{width}}  {times}  {n_tiles:5}", flush=True)
    for interpreter in arguments.peers:
        _print_peers(interpreter, sources, arguments.repeats)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path, help="folder of real slides")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "wsi-dino-benchmark")
    parser.add_argument("--peers", nargs="*", action="extend", default=[], help="interpreters of other environments")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def _requests() -> tuple[TileRequest, TileRequest]:
    biopsy = TissueSpec.preset("biopsy", no_pen=False)
    clam = TilingSpec(mpp=None, level=0, compat="clam", padding=True)
    return TileRequest(TissueSpec(), TilingSpec(mpp="native")), TileRequest(biopsy, clam)


def _draw(work: Path, name: str) -> Path:
    path = work / f"{name}.tif"
    if not path.is_file():
        side, downsamples = _DRAWN[name]
        print(f"drawing {path} ...", file=sys.stderr)
        painter = TissuePainter(np.random.default_rng(0), (side, side), tumour=True)
        write_pyramid(path, painter, wh=(side, side), downsamples=downsamples)
    return path


def _best(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _place(source: SlideSource, request: TileRequest) -> int:
    with open_slide(source.path, slide_id=source.slide_id) as slide:
        return len(place_tiles(slide, request, "").grid)


def _with_files(source: SlideSource, request: TileRequest) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tile_slides([source], RunFolder(Path(folder)), request, workers=1)


def _command(source: SlideSource) -> float:
    """Run the whole command in a process of its own; return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    folder = tempfile.mkdtemp()
    options = ["tile", str(source.path), "--run", folder, "--mpp", "native", "--json"]
    subprocess.run([sys.executable, "-c", _COMMAND, *options], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _print_peers(interpreter: str, sources: list[SlideSource], repeats: int) -> None:
    paths = [str(source.path) for source in sources]
    job = [interpreter, str(_PEERS_PROGRAM), str(repeats), *paths]
    done = subprocess.run(job, check=False, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    for line in lines:
        row = json.loads(line)
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if not lines:
        print(f"{interpreter}: no peer ran: {done.stderr.strip()[-400:]}")


if __name__ == "__main__":
    main()
