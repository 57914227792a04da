"""Every verb of the command line, in the order of `--help`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from wsi_dino.cli.bench import bench
from wsi_dino.cli.check_row import check_row
from wsi_dino.cli.cohort import cohort_app
from wsi_dino.cli.compare import compare
from wsi_dino.cli.demo import demo
from wsi_dino.cli.doctor import doctor
from wsi_dino.cli.embed import embed
from wsi_dino.cli.encoders import encoders
from wsi_dino.cli.heatmap import heatmap
from wsi_dino.cli.import_features import import_features
from wsi_dino.cli.init import init
from wsi_dino.cli.launching import Cores, launched
from wsi_dino.cli.localise import localise
from wsi_dino.cli.mil import mil
from wsi_dino.cli.paper import paper_app
from wsi_dino.cli.plan import plan
from wsi_dino.cli.predict import predict
from wsi_dino.cli.radiology import radiology_app
from wsi_dino.cli.status import status
from wsi_dino.cli.tile import tile
from wsi_dino.cli.weights import weights

VERBS: dict[str, Callable[..., Any]] = {
    "init": init,
    "tile": launched("tile", tile, Cores.one),
    "embed": launched("embed", embed),
    "import-features": import_features,
    "mil": launched("mil", mil, Cores.all),
    "heatmap": heatmap,
    "localise": localise,
    "compare": compare,
    "check-row": check_row,
    "predict": predict,
    "encoders": encoders,
    "weights": weights,
    "bench": bench,
    "plan": plan,
    "status": status,
    "doctor": doctor,
    "demo": demo,
}

# verbs with commands of their own below them
GROUPS: dict[str, Callable[[], typer.Typer]] = {
    "cohort": cohort_app,
    "paper": paper_app,
    "radiology": radiology_app,
}
