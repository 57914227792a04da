"""The command line: one verb a file, no science inside."""

from wsi_dino.cli.app import main

__all__ = ["main"]
