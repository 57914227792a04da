"""The documentation's site: builds without a warning, fetches nothing when read, and says what the program says."""

from __future__ import annotations

import functools
import json
import queue
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from browser import chromium

import wsi_dino
from wsi_dino.cli.reference import reference_page
from wsi_dino.cli.verbs import GROUPS, VERBS
from wsi_dino.encoders.record_table import licence_table
from wsi_dino.encoders.registry import builtin_records

_REPOSITORY = Path(__file__).resolve().parent.parent
_DOCS = _REPOSITORY / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs, the extra `docs`, is not installed")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=_REPOSITORY, env={"NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    return folder


class _Fetched(HTMLParser):
    """What a browser fetches by itself to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag in {"script", "img", "iframe", "source", "video", "embed", "object"}:
            self.found |= {value for key in ("src", "srcset", "data") if (value := known.get(key))}
        if tag == "link" and known.get("rel") not in {"canonical", "next", "prev"}:
            self.found.add(known.get("href") or "")


@pytest.mark.slow
def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        reader = _Fetched()
        reader.feed(page.read_text(encoding="utf-8"))
        away = {target for target in reader.found if re.match(r"(https?:)?//", target)}
        assert away == set(), page.name
        for target in reader.found - {target for target in reader.found if target.startswith("data:")}:
            place = target.partition("?")[0]
            assert (site / place.lstrip("/") if place.startswith("/") else page.parent / place).exists(), target
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", text), sheet.name


_SEARCH = """<!DOCTYPE html><iframe id=f src="index.html?q=camelyon16"></iframe><script>
setInterval(() => {
  const links = [...f.contentDocument.querySelectorAll('.md-search-result__link')].map(link => link.href);
  if (links.length) fetch('/found', {method: 'POST', body: JSON.stringify(links)});
}, 100)</script>"""


@pytest.mark.slow
def test_the_search_finds_the_page_of_a_word(site: Path, tmp_path: Path) -> None:
    """As a reader has it: over http, by the page's own script; it tells this test's server what it has found."""
    found: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    class Server(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/search-test.html":
                return super().do_GET()
            self.send_response(200)
            self.end_headers()
            return self.wfile.write(_SEARCH.encode())

        def do_POST(self) -> None:
            found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    program = chromium()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
             "--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/search-test.html"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            links = found.get(timeout=300)
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
    assert any("/cohorts.html" in link for link in links), links


@pytest.mark.slow
def test_every_page_is_led_to_from_another(site: Path) -> None:
    pages = {page.relative_to(site).as_posix() for page in site.rglob("*.html")} - {"404.html"}
    linked = set()
    for page in pages:
        for target in re.findall(r'href="([^"#:]+\.html)', (site / page).read_text(encoding="utf-8")):
            linked.add((site / page).parent.joinpath(target).resolve().relative_to(site.resolve()).as_posix())
    assert pages - linked == set()


@pytest.mark.slow
def test_the_site_has_every_command(site: Path) -> None:
    page = (site / "cli.html").read_text(encoding="utf-8")
    for verb in VERBS:
        assert f'id="wsi-dino-{verb}"' in page
    for word in ("paper-verify", "radiology-em", "cohort-bcnb"):
        assert f'id="wsi-dino-{word}"' in page


def test_every_option_of_every_command_is_in_the_reference() -> None:
    import typer

    from wsi_dino.cli.app import app, register_verbs

    register_verbs()
    page, root = reference_page(), typer.main.get_command(app)
    commands = {**root.commands, **{f"{group} {name}": command for group in GROUPS
                                    for name, command in root.commands[group].commands.items()}}  # fmt: skip
    for name, command in commands.items():
        if name in GROUPS:
            continue
        start = page.index(f"\n## wsi-dino {name}\n")
        section = page[start : page.find("\n## ", start + 1) if page.find("\n## ", start + 1) > 0 else None]
        options = [parameter for parameter in command.params if parameter.opts[0].startswith("-")]
        shown = [option.opts[0] for option in options if not option.hidden]
        assert [word for word in shown if word not in section] == [], name


def test_every_row_of_the_reference_has_two_cells() -> None:
    for line in reference_page().splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3, line


def test_signs_of_the_help_survive_the_way_to_html() -> None:
    markdown = pytest.importorskip("markdown", reason="the extra `docs` is not installed")
    page = markdown.markdown(reference_page(), extensions=["tables"])
    row = next(line for line in page.splitlines() if "Smallest share of tissue in a tile" in line)
    assert "[default: 0.25] [0&lt;=x&lt;=1]" in row
    assert "\\" not in re.sub(r"<code>.*?</code>", "", page)


def test_the_reference_needs_no_heavy_library() -> None:
    code = (
        "import sys; from wsi_dino.cli.reference import reference_page; reference_page(); "
        "print([name for name in ('torch', 'pandas', 'sklearn', 'matplotlib', 'monai') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_licences_are_those_of_the_records() -> None:
    page = (_DOCS / "licences.md").read_text(encoding="utf-8")
    assert licence_table(builtin_records()) in page, "put what wsi_dino.encoders.record_table.licence_table gives there"


def test_every_dataset_that_is_read_has_its_terms() -> None:
    from wsi_dino.pathology.cohorts.cohort_table import cohort_readers

    page = (_DOCS / "licences.md").read_text(encoding="utf-8")
    names = [*cohort_readers(), "nih14", "rsna", "ct-rate", "msd-task01", "autopet2", "hecktor2022", "cremi-a", "ac34",
             "wafer4"]  # fmt: skip
    assert [name for name in names if name not in page] == []


def test_every_decision_is_listed() -> None:
    index = (_DOCS / "decisions.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted((_DOCS / "adr").glob("*.md")) if f"(adr/{path.name})" not in index] == []


def test_every_track_has_a_tutorial_and_a_start_page_that_leads_there() -> None:
    start = (_DOCS / "index.md").read_text(encoding="utf-8")
    tutorials = sorted(path.name for path in (_DOCS / "tutorials").glob("*.md"))
    assert tutorials == ["chest-xray.md", "ct.md", "em.md", "paper.md", "pathology.md", "segmentation-3d.md"]
    assert all(f"(tutorials/{name})" in start for name in tutorials)


def test_the_citation_is_of_this_version_and_licence() -> None:
    cited = yaml.safe_load((_REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert (cited["version"], cited["license"], cited["type"]) == (wsi_dino.__version__, "Apache-2.0", "software")
    assert all({"name"} <= set(author) for author in cited["authors"])
