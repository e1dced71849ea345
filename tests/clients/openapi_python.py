"""openapi-python-client: generates a client from /openapi.json, without a warning, and asks with it."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.clients.asked import CONTEXT, QUESTION, addresses, check_answer, say

# The generator knows no media type of lines: what its types say of an item holds for each line.
CONFIG = """
package_name_override: qa_client
content_type_overrides: {application/x-ndjson: application/json}
post_hooks: []
"""


def generate(url: str, folder: Path) -> None:
    generator = Path(sys.executable).with_name("openapi-python-client")
    config = folder / "config.yml"
    config.write_text(CONFIG)
    options = ("--config", config, "--meta", "none", "--output-path", folder / "qa_client")
    command = (generator, "generate", "--url", f"{url}/openapi.json", *options, "--fail-on-warning")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    say("generator", done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr


def ask(url: str) -> None:
    import qa_client.api  # type: ignore[import-not-found]  # generated a moment ago
    from qa_client import Client
    from qa_client.models import QuestionBody  # type: ignore[import-not-found]

    modules = [m.name for m in pkgutil.walk_packages(qa_client.api.__path__, "qa_client.api.")]
    say("operations", sum(1 for name in modules if name.count(".") == 3))
    module = importlib.import_module(
        next(name for name in modules if name.endswith("answer_v1_answer_post"))
    )
    with Client(base_url=url) as client:
        reply = module.sync_detailed(
            client=client,
            body=QuestionBody(question=QUESTION, context=CONTEXT, sentence=True),
            slo_latency_ms=5000.0,
            slo_min_f1=0.3,
        )
        answer = reply.parsed
        check_answer(answer.answer, answer.start, answer.end)
        say("answer", (answer.answer, answer.start, answer.end))
        say("in the body", (answer.slo.met, answer.cost.largest_variant, answer.sentence.text))
        refused = module.sync_detailed(
            client=client, body=QuestionBody(question="", context=CONTEXT)
        ).parsed
        say("a problem, typed", (type(refused).__name__, refused.status, refused.detail))


def main() -> None:
    url, _ = addresses()
    with tempfile.TemporaryDirectory() as folder:
        generate(url, Path(folder))
        sys.path.insert(0, folder)
        ask(url)


main()
