"""The documentation of settings is the settings."""

from __future__ import annotations

import pytest

from gateway.docs import settings
from gateway.settings import Settings
from tests.fakes import ROOT


def test_the_documents_table_of_settings_is_that_of_the_code() -> None:
    """A default that changed in one place only misleads whoever sets it."""
    document = (ROOT / "docs" / "reference" / "settings.md").read_text()
    assert settings.written_into(document) == document, "run `make settings`"


def test_every_setting_says_what_it_does() -> None:
    """A row without words helps nobody."""
    silent = [name for name, field in Settings.model_fields.items() if not field.description]
    assert silent == []


def test_a_row_has_default_range_and_flag() -> None:
    """These are what an operator looks up."""
    rows = {row.split("|")[1].strip(): row for row in settings.table().splitlines()}
    assert "| `8080`; 0 to 65535 |" in rows["`http_port`*"]
    assert "| `10000` | how long" in rows["`drain_ms`"]
    assert "| `0.05`; < 1 |" in rows["`shadow_delta`"]
    assert "| `auto`; `triton`, `embedded` |" in rows["`backend`*"]
    assert "`interactive`, `standard`, `batch`" in rows["`classes`"]


def test_a_document_without_marks_is_refused() -> None:
    """Nothing is written where it was not asked for."""
    with pytest.raises(ValueError, match="needs the lines"):
        settings.written_into("# Some other document")
