"""The examples of docs/how-to/python-client.md are run as they are printed, against a running gateway."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re

import pytest

from tests import live
from tests.fakes import ROOT

EXAMPLES = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "how-to" / "python-client.md").read_text(), re.DOTALL
)


def test_the_page_has_examples() -> None:
    """A page without examples would pass the next test."""
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize(
    ("example", "said"),
    list(zip(EXAMPLES, [" True", "came|failed|Ada", "small 14", "about: Answer"], strict=True)),
)
async def test_an_example_runs(example: str, said: str) -> None:
    """What a newcomer copies works."""
    async with live.gateway() as running:
        code = example.replace("127.0.0.1:8080", running.http_url)
        code = code.replace("127.0.0.1:8081", running.grpc_url)
        printed = io.StringIO()

        def work() -> None:
            with contextlib.redirect_stdout(printed):
                exec(
                    compile(code, "docs/how-to/python-client.md", "exec"), {"__name__": "__main__"}
                )

        await asyncio.to_thread(work)
    assert re.search(said, printed.getvalue())
