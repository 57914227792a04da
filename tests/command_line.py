"""Runs the program inside the test's own process, as a shell would from a folder."""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        lines = self.stdout.splitlines()
        assert len(lines) == 1, self.stdout + self.stderr
        return dict(json.loads(lines[0]))


def run_command(folder: Path, *arguments: object) -> Ran:
    """Run `wsi-dino ARGUMENTS` in `folder`; a bare traceback would be raised here."""
    from wsi_dino.cli.app import main

    out, err, before, code = io.StringIO(), io.StringIO(), Path.cwd(), 0
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    finally:
        os.chdir(before)
    return Ran(code, out.getvalue(), err.getvalue())
