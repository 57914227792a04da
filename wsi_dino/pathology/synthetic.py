"""Drawn slides for the demonstration, tests and benchmarks: what is drawn, and the pyramid it is written to."""

from __future__ import annotations

from wsi_dino.pathology.pyramid_writer import Painter, write_pyramid
from wsi_dino.pathology.tissue_painter import REDUCED_BY, TissuePainter, draw_tissue

__all__ = ["REDUCED_BY", "Painter", "TissuePainter", "draw_tissue", "write_pyramid"]
