"""A page in headless Chromium: what a reader's browser would say of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# errors are gathered from before the page's first line; the answer is read from the page after it has been laid out
_EARS = "<script>window.heard=[];addEventListener('error',e=>heard.push(String(e.message||e.target)),true);</script>"
_QUESTIONS = """<script>addEventListener('load',()=>setTimeout(()=>{
const all=s=>[...document.querySelectorAll(s)], visible=e=>e.getClientRects().length>0;
const answer={
 width:innerWidth, scroll_width:document.documentElement.scrollWidth, errors:heard,
 requests:performance.getEntriesByType('resource').map(e=>e.name).filter(n=>!n.startsWith('data:')),
 dark:matchMedia('(prefers-color-scheme: dark)').matches, background:getComputedStyle(document.body).backgroundColor,
 headings:all('h1,h2,h3,h4').map(e=>[+e.tagName[1],e.textContent.trim()]), lang:document.documentElement.lang,
 title:document.title, landmarks:['header','main','footer','nav'].filter(s=>document.querySelector(s)),
 tables:all('table').map(t=>({caption:t.caption?t.caption.textContent.trim():'',
   headers:t.querySelectorAll('th[scope]').length===t.querySelectorAll('th').length,
   rows:[...t.tBodies[0].rows].every(r=>r.cells[0].matches('th[scope=row]')),
   region:t.parentElement.matches('[role=region][tabindex="0"][aria-labelledby]'),
   fits:t.parentElement.getBoundingClientRect().right<=innerWidth})),
 images:all('img').map(e=>[e.alt,e.naturalWidth>0]), svgs:all('svg[role=img]').map(e=>e.getAttribute('aria-label')),
 ids:all('[id]').map(e=>e.id), targets:all('a[href^="#"]').map(e=>decodeURIComponent(e.getAttribute('href').slice(1))),
 links:all('a').map(e=>(e.getAttribute('aria-label')||e.textContent).trim()), details:all('details>summary').length,
 first:(()=>{const e=all('a,button,[tabindex="0"]').find(e=>e.tabIndex>=0);e.focus();
   return [e.textContent.trim(),visible(e)&&e.getBoundingClientRect().left>=0]})()};
const pre=document.createElement('pre');pre.id='browser-answer';pre.textContent=JSON.stringify(answer);
document.body.appendChild(pre)},300))</script>"""


def chromium() -> str:
    """Return the program, or skip the test."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here: `apt-get install chromium` brings one, as .ci/run does")
    return found


def ask(page: Path, folder: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
    """Open a copy of a page in a window of `width` px, without a network, and return what is to be known of it."""
    text = page.read_text(encoding="utf-8")
    assert text.lstrip().lower().startswith("<!doctype html>")
    inner = folder / "page.html"
    inner.write_text(text.replace("<head>", f"<head>{_EARS}", 1).replace("</body>", f"{_QUESTIONS}</body>", 1))
    wrapper = folder / f"at-{width}.html"  # a window has a least width, a frame has none
    wrapper.write_text(
        f'<!DOCTYPE html><iframe id=f src=page.html style="border:0;width:{width}px;height:900px"></iframe>'
        "<script>onload=()=>setInterval(()=>{const a=f.contentDocument.getElementById('browser-answer');"
        "if(a&&!document.querySelector('pre')){const p=document.createElement('pre');p.textContent=a.textContent;"
        "document.body.appendChild(p)}},50)</script>"
    )
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
    done = subprocess.run(
        [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", *scheme,
         "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr",
         "--virtual-time-budget=15000", f"--window-size={max(width, 600)},1000", "--dump-dom", wrapper.as_uri()],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    found = re.search(r"<pre>(\{.*?\})</pre>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return {**json.loads(unescape(found[1])), "console": console}
