"""The pages of docs/ are in the site, and their links lead somewhere."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
READ = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")


def in_navigation(part: Any) -> set[str]:
    if isinstance(part, str):
        return {part}
    parts = part.values() if isinstance(part, dict) else part
    return {page for each in parts for page in in_navigation(each)}


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs both make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in headings}


def test_every_page_is_in_the_navigation() -> None:
    """What is in no menu is found by nobody."""
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert in_navigation(navigation) == {str(page.relative_to(DOCS)) for page in PAGES}


@pytest.mark.parametrize("page", READ, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    """A page that was moved or a heading that was renamed leaves readers nowhere."""
    text = re.sub(r"`[^`\n]*`", "", page.read_text())
    for target in LINK.findall(text):
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_every_experiment_is_in_the_index() -> None:
    """Who asks whether something was tried looks there."""
    folder = DOCS / "experiments"
    linked = set(LINK.findall((folder / "index.md").read_text()))
    assert linked == {page.name for page in folder.glob("*.md")} - {"index.md"}


@pytest.mark.parametrize("module", ["gateway.cli.main", "optimizer.cli.main", "loadtest.cli"])
def test_every_command_is_in_the_reference(module: str) -> None:
    """A command that is on no page is found by accident only."""
    parser: argparse.ArgumentParser = importlib.import_module(module)._parser()
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    commands = {name for group in groups for name in group.choices}
    page = (DOCS / "reference" / "cli.md").read_text()
    assert commands
    assert {name for name in commands if f"`{name}`" not in page} == set()
