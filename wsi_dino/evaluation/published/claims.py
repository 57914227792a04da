"""What the text of the paper says of its tables, in a form that can be checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from wsi_dino.errors import ResultError

Rule = Literal["best", "above", "factor", "rising", "not rising", "equal"]
# `section: 4.1` is a number to YAML, and 0.798 would lose its digits
Text = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CountedSum(_Entry):
    """A whole and its parts, both stated in the text.

    Attributes:
        id: name of the entry.
        section: where it stands.
        quote: the words, as printed.
        total: the whole.
        parts: what should add up to it.
    """

    id: str
    section: Text
    quote: str
    total: int
    parts: tuple[int, ...]


class Claim(_Entry):
    """A sentence, and what it says of the cells of one table.

    Attributes:
        id: name of the entry.
        section: where it stands.
        quote: the words, as printed.
        rule: ``best``: one of `rows` is the best of all (of `among` where given). ``above``: all `rows`
            (with `some`: one of them) are better than all rows of `than`. ``factor``: the errors of all
            `rows` are `factor` times the least of `than`, or more. ``rising``: better from row to row.
            ``not rising``: the contrary. ``equal``: the one cell is `value`.
        table: its number.
        rows: names of rows.
        columns: each is checked by itself.
    """

    id: str
    section: Text
    quote: str
    rule: Rule
    table: int = Field(ge=1, le=10)
    rows: tuple[str, ...] = Field(min_length=1)
    columns: tuple[str, ...] = Field(min_length=1)
    than: tuple[str, ...] = ()
    among: tuple[str, ...] = ()
    some: bool = False
    factor: int = 1
    value: Text = ""


EntryType = TypeVar("EntryType", bound=BaseModel)


def read_entries(path: Path, kind: type[EntryType]) -> tuple[EntryType, ...]:
    """Read a YAML list of entries.

    Raises:
        ResultError: the file is missing, is no YAML, or an entry says what it must not.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(tuple[kind, ...]).validate_python(content)  # type: ignore[valid-type]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ResultError(f"{path}, entry {where or '(all)'}: {first['msg']}, got {first['input']!r:.80}.") from None
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ResultError(f"Reading what the paper says: {path}{where} is no YAML: {error.problem}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        told = str(error).splitlines()[0]
        raise ResultError(f"Reading what the paper says: {path} cannot be read: {told}.") from None
