"""How the program logs: the console or JSON lines, the request id in each. Set up once, by main."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

CONSOLE = "%(asctime)s %(levelname)-7s %(name)s%(request)s %(message)s"
# Libraries that say more than their share at our levels.
QUIET = ("asyncio", "httpx2", "httpcore2", "hpack")

request_id: ContextVar[str] = ContextVar("request_id", default="")
trace_id: ContextVar[str] = ContextVar("trace_id", default="")  # 32 hexadecimal digits, or none


def set_up(level: str, form: Literal["console", "json"]) -> None:
    """Send every log line to stderr in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(CONSOLE))
    handler.addFilter(_add_request)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _add_request(record: logging.LogRecord) -> bool:
    known = request_id.get()
    record.request = f" [{known}]" if known else ""
    return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if known := request_id.get():
            line["request_id"] = known
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
