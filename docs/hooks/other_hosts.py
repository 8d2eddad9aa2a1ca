"""Takes the addresses of other hosts out of the theme's scripts: no page of the site can load anything from elsewhere.

The theme would fetch a drawing library or figures of a repository where a page asks for them; none here does. Scripts
for other languages than English go too.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

# Licences stay as they are, and so do the names of XML vocabularies, which nothing fetches.
_LICENCE_OR_ADDRESS = re.compile(r"(/\*!.*?\*/)|https?://(?!www\.w3\.org/)", re.DOTALL)


def on_post_build(*, config: Any) -> None:
    """Changes the scripts of the built site."""
    scripts = Path(config.site_dir) / "assets" / "javascripts"
    shutil.rmtree(scripts / "lunr", ignore_errors=True)
    for script in scripts.rglob("*.js"):
        text = script.read_text(encoding="utf-8")
        script.write_text(_LICENCE_OR_ADDRESS.sub(lambda m: m[1] or "not-loaded:", text), encoding="utf-8")
    for source_map in Path(config.site_dir).rglob("*.map"):
        source_map.unlink()
