"""What a newcomer is told when the gateway is up."""

from __future__ import annotations

import textwrap

from gateway import app
from gateway import catalog as catalogs
from tests.fakes import ROOT


def test_the_readme_shows_the_request_that_serve_prints() -> None:
    """Whoever compares the two must find no difference."""
    curl = "curl" + app.ready_text("127.0.0.1", 8080).split("curl", 1)[1]
    assert textwrap.indent(curl, "    ") in (ROOT / "README.md").read_text()


def test_the_shipped_models_keep_the_promise_of_the_example() -> None:
    """The first answer anybody sees should say SLO-Met: true."""
    assert catalogs.read(ROOT / "model_repository").best_floor >= app.EXAMPLE_MIN_F1


def test_the_request_is_to_where_the_gateway_listens() -> None:
    """Nothing can be asked at 0.0.0.0."""
    assert "curl -i http://127.0.0.1:9080/v1/answer" in app.ready_text("0.0.0.0", 9080)
    assert "curl -i http://[::1]:9080/v1/answer" in app.ready_text("::", 9080)
