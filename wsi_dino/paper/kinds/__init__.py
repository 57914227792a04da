"""The tracks by name, one file each: a new one is a file here and a line below."""

from __future__ import annotations

from collections.abc import Mapping

from wsi_dino.paper.kind import Kind
from wsi_dino.paper.kinds.chest import ChestXray
from wsi_dino.paper.kinds.ct import Ct
from wsi_dino.paper.kinds.em import Em
from wsi_dino.paper.kinds.segment import Segment
from wsi_dino.paper.kinds.slides import Slides

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (ChestXray(), Slides(), Ct(), Segment(), Em())}
COMMANDS: Mapping[str, tuple[str, ...]] = {name: kind.commands for name, kind in KINDS.items()}
