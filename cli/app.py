"""The `wsi-dino` program: finds the verbs, reads wsi-dino.yaml, turns errors into messages and exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from wsi_dino import __version__
from wsi_dino.cli import console, launching, project_file
from wsi_dino.cli.grouped_help import GroupedCommand
from wsi_dino.cli.interrupts import INTERRUPTED
from wsi_dino.cli.launchers.task import end_with_parent
from wsi_dino.errors import StorageError, WsiDinoError
from wsi_dino.provenance import as_storage_error
from wsi_dino.worker_record import end_all

# typer carries a click of its own in some releases: this names the base of its usage errors in all of them
_CLICK_EXCEPTION: Any = typer.BadParameter.__mro__[2]


app = typer.Typer(
    name="wsi-dino",
    help="Which frozen encoder serves my medical imaging task, and how good is it, honestly?",
    no_args_is_help=True,
    add_completion=False,
    suggest_commands=False,  # click itself does
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and leave.", is_eager=True),
) -> None:
    if version:
        print(f"wsi-dino {__version__}")
        raise typer.Exit


def register_verbs() -> None:
    """Hang every verb of `verbs.py` into the program."""
    from wsi_dino.cli import verbs

    app.registered_commands.clear()  # `main` may run more than once in a process
    for name, function in verbs.VERBS.items():
        settings = {"allow_interspersed_args": False} if name == "plan" else None  # what follows is another command
        app.command(name, cls=GroupedCommand, help=function.__doc__, context_settings=settings)(function)
    app.registered_groups.clear()
    for name, make_group in verbs.GROUPS.items():
        app.add_typer(make_group(), name=name)


def _storage_error(error: OSError) -> StorageError:
    path = Path(error.filename or "output")
    return as_storage_error(error, path) or StorageError(
        f"{path}: {error.strerror or error}. Check that the folder exists and can be read and written."
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; leaves by SystemExit.

    Exit codes: 0 done, 1 some items failed, 2 wrong usage or input, 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    end_with_parent()
    launching.remember(arguments)
    register_verbs()
    command = typer.main.get_command(app)
    as_json = "--json" in arguments
    # `init` writes the file anew, so a broken one must not stand in its way
    needs_none = {"--help", "-h"} & set(arguments) or arguments[:1] == ["init"]
    try:
        defaults: dict[str, Any] = {} if needs_none else project_file.defaults(command)
        code = command.main(arguments, prog_name="wsi-dino", default_map=defaults, standalone_mode=False)
        if code == INTERRUPTED:  # Typer turns Ctrl-C into this before we see it
            console.interrupted(as_json=as_json)
        sys.exit(code if isinstance(code, int) else 0)
    except WsiDinoError as error:
        console.fail(error, as_json=as_json)
    except _CLICK_EXCEPTION as error:
        error.show()
        console.fail_usage(error, as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        console.interrupted(as_json=as_json)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        console.fail(_storage_error(error), as_json=as_json)
    finally:
        end_all()
