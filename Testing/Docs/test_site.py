"""The documentation site: it builds without a warning, loads nothing from elsewhere, and names commands that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import replica_detection as rd
from Docs.other_hosts import loaded_from_elsewhere
from replica_detection.cli import app

PROJECT = Path(__file__).resolve().parents[2]
PAGES = sorted(p for p in (*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), PROJECT / "MonaiLabelApp/README.md"))
COMMANDS = typer.main.get_command(app).commands


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A broken link or reference, or a page that stands nowhere in the navigation, ends the build."""
    folder = tmp_path_factory.mktemp("site")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=PROJECT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert ran.returncode == 0, ran.stderr
    return folder


def test_the_site_loads_nothing_from_another_host(site: Path) -> None:
    files = [f for f in site.rglob("*") if f.suffix in (".html", ".css", ".js", ".svg")]
    assert len(files) > 20
    found = {f.relative_to(site): loaded_from_elsewhere(f.suffix[1:], f.read_text(encoding="utf-8")) for f in files}
    assert {f: where for f, where in found.items() if where} == {}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("html", '<script src="https://cdn.example/x.js"></script>'),
        ("html", '<script src="//cdn.example/x.js"></script>'),
        ("html", "<script>fetch('https://cdn.example/x.json')</script>"),
        ("html", '<link rel="stylesheet" href="https://fonts.example/css?family=Roboto">'),
        ("html", '<link rel="shortcut icon" href="https://cdn.example/i.png">'),
        ("html", '<link href="https://fonts.example" rel="preconnect" crossorigin>'),
        ("html", '<img alt="a" src="https://cdn.example/i.png">'),
        ("html", '<img src="i.png" srcset="j.png 1x, https://cdn.example/j.png 2x">'),
        ("html", '<video poster="https://cdn.example/i.png"></video>'),
        ("html", '<object data="https://cdn.example/i.svg"></object>'),
        ("html", '<p style="background: url(https://cdn.example/i.png)">'),
        ("html", "<style>@import 'https://cdn.example/x.css';</style>"),
        ("html", "<p onclick=\"open('https://cdn.example')\">"),
        ("html", '<meta http-equiv="refresh" content="0; url=https://cdn.example">'),
        ("html", '<base href="https://cdn.example/">'),
        ("svg", '<svg><image xlink:href="https://cdn.example/i.png"/></svg>'),
        ("css", "@font-face { src: url('//fonts.example/f.woff2') }"),
        ("css", '@import "https://fonts.example/f.css";'),
        ("js", "const library = `https://cdn.example/mermaid.js`"),
        ("js", 'new WebSocket("wss://live.example")'),
    ],
)
def test_what_loads_from_another_host_is_found(kind: str, text: str) -> None:
    (found,) = loaded_from_elsewhere(kind, text)
    assert "example" in found


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("html", '<a href="https://paper.example">paper</a> https://paper.example'),
        ("html", '<link rel="canonical" href="https://here.example"><script src="../x.js"></script><img src="i.png">'),
        ("html", '<svg xmlns="http://www.w3.org/2000/svg"><use href="#a"/></svg>'),
        ("css", "/* https://licence.example */ a { background: url(../i.png) }"),
        ("js", '/*! https://licence.example */ e.createElementNS("http://www.w3.org/2000/svg", "g")'),
    ],
)
def test_links_and_what_lies_beside_are_no_loads(kind: str, text: str) -> None:
    assert loaded_from_elsewhere(kind, text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_commands_on_the_pages_exist(page: Path) -> None:
    for name, options in commands_in(page.read_text(encoding="utf-8")):
        assert name in COMMANDS, f"replica-detection {name}"
        known = {o for p in COMMANDS[name].params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
        assert set(options) <= known, f"replica-detection {name}: {set(options) - known}"


def test_faulty_commands_are_seen() -> None:
    text = "```\nreplica-detection detect a/ --training b/ \\\n    --outptu c  # --comment\nreplica-detection undo\n```"
    assert commands_in(text) == [("detect", ["--training", "--outptu"]), ("undo", [])]


def commands_in(markdown: str) -> list[tuple[str, list[str]]]:
    """Returns command and options of each call of `replica-detection` in blocks of code."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    call = re.compile(r"(?:^ *|&& *|\$\(|/bin/)replica-detection +([a-z][\w-]*)([^#;|)]*)")
    calls = [c for line in lines for c in call.finditer(line.split(" #")[0])]
    return [(c[1], re.findall(r"(?<!\S)--?[a-z][\w-]*", c[2])) for c in calls]


def test_every_command_and_option_is_on_the_page_of_commands(site: Path) -> None:
    page = (site / "command-line.html").read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        assert f'id="{name}"' in page
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert f"<code>{option}</code>" in page, f"{name} {option}"


def test_every_public_name_is_on_the_page_of_the_api(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in rd.__all__:
        assert name.startswith("__") or f'id="replica_detection.{name}"' in page, name
