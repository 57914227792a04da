"""The table of encoders, for the eye and for the documentation: made from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from wsi_dino.encoders.record import EncoderSpec

SHORT_COLUMNS = ("name", "dim", "px", "pooling", "M", "access", "licence", "paper")
_LONGEST_LICENCE = 22

_INTRODUCTION = """\
# Encoders

This page is made from the records in `wsi_dino/encoders/families` by
`wsi-dino encoders --markdown > docs/encoders.md`. `wsi-dino encoders` prints a shorter table, `wsi-dino encoders NAME`
one record whole, and `--json` everything: mean and standard deviation, revision, checksum, and the rest.

How to read it:

- **Name** is what follows `--encoder`. **In the paper** is the row of the benchmark's tables that it stands for.
- **Vector** is its length with the default pooling; `--pooling` takes the others. `mean` is that of the patch tokens
  (CLS and registers left out), `cls+mean` both side by side.
- **Input** is the side of the square the network sees; tiles of another size are resized to it. `--input-px` takes
  the other sizes named.
- **Maps** are the layers taken for multi-scale maps: blocks of a transformer counted from 0, or stages.
- **Number formats** are those that do its features no harm.
- **Access**: *open* is fetched from the hub at first use; *gated* too, after its terms are accepted on the page;
  *package* comes with a Python package; *by hand* lies elsewhere and is given by `--weights`; *own file* means that
  no weights in a form that is read here are public; *listed* is run by nothing here.
- Trained networks are not part of this package. Their licences are their owners', and what they ask is below; it
  also stands in every report.
"""


def access_of(record: EncoderSpec) -> str:
    """Return in a word how one comes by the weights.

    Examples:
        >>> from wsi_dino.encoders.registry import get_record
        >>> [access_of(get_record(name)) for name in ("dinov3-s", "uni", "swav", "byol", "ct-clip")]
        ['open', 'gated', 'by hand', 'own file', 'listed']
    """
    if record.dimensions == 3:
        return "listed"
    if not record.is_public:
        return "own file"
    if record.gated:
        return "gated"
    kind = record.source.partition(":")[0]
    return {"package": "package", "https": "by hand"}.get(kind, "open")


def short_rows(records: Iterable[EncoderSpec]) -> list[dict[str, str]]:
    """Return what a table of `SHORT_COLUMNS` shows of each record; it fits 100 columns."""
    return [
        {
            "name": record.name,
            "dim": str(record.embed_dim or ""),
            "px": str(record.input_px) if record.dimensions == 2 else "3D",
            "pooling": record.pooling,
            "M": "" if record.parameters_m is None else f"{record.parameters_m:.0f}",
            "access": access_of(record),
            "licence": _shortened(record.licence),
            "paper": "yes" if record.paper else "",
        }
        for record in records
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_LICENCE else f"{text[: _LONGEST_LICENCE - 3].rstrip()}..."


def markdown_page(records: Iterable[EncoderSpec], patterns: Iterable[str]) -> str:
    """Return the documentation's page.

    Args:
        records: in the order in which they are to stand.
        patterns: a sentence for every kind of name that is not listed, such as ``timm/NAME``.
    """
    listed = list(records)
    rows = [_markdown_row(record) for record in listed]
    lines = [
        _INTRODUCTION,
        _line(rows[0].keys()),
        _line("---" for _ in rows[0]),
        *(_line(row.values()) for row in rows),
    ]
    lines += ["", "## By pattern", ""]
    lines += [f"- {sentence.replace('``', '`')}" for sentence in patterns]
    lines += ["", "## What the licences ask", ""]
    lines += _grouped(listed, lambda record: " ".join(record.obligations))
    lines += ["", "## Notes", ""]
    lines += _grouped(listed, lambda record: record.notes)
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _markdown_row(record: EncoderSpec) -> dict[str, str]:
    is_run = record.dimensions == 2
    others = [pooling for pooling in record.poolings if pooling != record.pooling]
    vector = f"{record.embed_dim} ({record.pooling})" + (f"; {', '.join(others)}" if others else "")
    return {
        "Name": f"`{record.name}`",
        "In the paper": record.paper,
        "Network": record.architecture,
        "Vector": vector if is_run else "",
        "Input, px": _sizes(record) if is_run else record.takes,
        "Maps": ", ".join(str(layer) for layer in record.feature_layers),
        "Parameters, M": "" if record.parameters_m is None else f"{record.parameters_m:g}",
        "Number formats": ", ".join(record.precisions) if is_run else "",
        "Trained on": record.training_data,
        "Licence": f"[{record.licence}]({record.licence_url})" if record.licence_url else record.licence,
        "Access": _access_link(record),
    }


def _sizes(record: EncoderSpec) -> str:
    if record.input_multiple_px is None:
        return f"{record.input_px} only"
    largest = f" up to {record.max_input_px}" if record.max_input_px else ""
    return f"{record.input_px}; multiples of {record.input_multiple_px}{largest}"


def _access_link(record: EncoderSpec) -> str:
    word = access_of(record)
    if record.source.startswith("package:"):
        return f"{word} {record.source.removeprefix('package:')}"
    url = record.source if record.source.startswith("https:") else f"https://huggingface.co/{record.source}"
    return f"[{word}]({url})"


def _grouped(records: Iterable[EncoderSpec], text_of: Callable[[EncoderSpec], str]) -> list[str]:
    """Return a line for every text, behind the names of all whose text it is."""
    names: dict[str, list[str]] = {}
    for record in records:
        text = text_of(record)
        if text:
            names.setdefault(text, []).append(f"`{record.name}`")
    return [f"- {', '.join(group)}: {text}" for text, group in names.items()]


def licence_table(records: Iterable[EncoderSpec]) -> str:
    """Return the documentation's table of licences: what binds which encoders, and what it asks.

    An encoder's name leads to its own licence.
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for record in records:
        name = f"[`{record.name}`]({record.licence_url})" if record.licence_url else f"`{record.name}`"
        terms = (record.licence, "gated" if record.gated else "", " ".join(record.obligations))
        groups.setdefault(terms, []).append(name)
    rows = [(licence, ", ".join(names), access, asks) for (licence, access, asks), names in sorted(groups.items())]
    return "\n".join(_line(row) for row in (("Licence", "Encoders", "Access", "What it asks"), ("---",) * 4, *rows))
