"""The HTML document around the sections of a page: head, style and script.

The page opens from disk and loads nothing from the network: style and script are inlined, and its content
security policy forbids everything else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from pathlib import Path

HERE = Path(__file__).parent

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src '{style_hash}'; script-src '{script_hash}'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{heading}</h1>
<p class="soft">{about}</p>
<nav>{nav}</nav>
{warning}{sections}
<div id="tip" role="tooltip"></div>
<script>{script}</script>
</body>
</html>
"""


def document(
    title: str, heading: str, about: str, sections: Mapping[str, tuple[str, str]], warning: str = ""
) -> str:
    """Return the whole page. `sections`: title and HTML by id; `about` and `warning` are HTML."""
    style, script = ((HERE / f"page.{kind}").read_text() for kind in ("css", "js"))
    return PAGE.format(
        title=escape(title),
        heading=escape(heading),
        about=about,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
        nav=" ".join(f'<a href="#{key}">{name}</a>' for key, (name, _) in sections.items()),
        warning=warning,
        sections="\n".join(
            f'<section id="{key}"><h2>{name}</h2>\n{inside}</section>'
            for key, (name, inside) in sections.items()
        ),
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
