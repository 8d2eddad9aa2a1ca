"""A real browser for tests: what it logs while it opens a page, and the page's tree after its scripts have run."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
)


@dataclass(frozen=True)
class Opened:
    """`dom` is the serialized tree, `console` the lines that the page wrote to the console, errors among them."""

    dom: str
    console: tuple[str, ...]


def open_page(page: Path, profile: Path) -> Opened:
    """Opens a page from disk with a new profile in `profile`; skips the test where no browser is installed."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: install one of {', '.join(NAMES)}")
    command = [program, *OPTIONS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=True)
    return Opened(done.stdout, tuple(re.findall(r".*CONSOLE.*", done.stderr)))
