"""What the site has and docs/ has not: the options of every command, and the pages that lie beside docs/."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parent.parent
# file of the repository: page of the site
_BESIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "data_splits/README.md": "data-splits.md",
    "benchmarks/README.md": "benchmarks.md",
}
_LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie beside docs/."""
    from mkdocs.structure.files import File

    for place, page in _BESIDE.items():
        text = (_REPOSITORY / place).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_relinked(text, posixpath.dirname(place), page)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links that leave docs/ to pages of the site, and write the command line's page."""
    where = page.file.src_uri
    if where == "cli.md":
        from wsi_dino.cli.reference import reference_page

        return f"{markdown}\n{reference_page()}"
    if where in _BESIDE.values():
        return markdown
    return _relinked(markdown, posixpath.dirname(f"docs/{where}"), where)


def _relinked(text: str, folder: str, page: str) -> str:
    """Return the text of a file in `folder` of the repository, its links as `page` of the site has them."""

    def of_site(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        inside = _BESIDE.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        return posixpath.relpath(inside, posixpath.dirname(page) or ".") if inside else match[1]

    return _LINK.sub(of_site, text)
