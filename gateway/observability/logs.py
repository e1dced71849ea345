"""How the program logs: the console or JSON lines, request and trace id in each. Set up once, by main.

A line that cannot be written is lost and counted; nothing else comes of it.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

CONSOLE = "%(asctime)s %(levelname)-7s %(name)s%(request)s %(message)s%(details)s"
# Libraries that say more than their share at our levels.
QUIET = ("asyncio", "httpx2", "httpcore2", "hpack")
FIELDS = "fields"  # attribute of a record: its fields beside the message

request_id: ContextVar[str] = ContextVar("request_id", default="")
trace_id: ContextVar[str] = ContextVar("trace_id", default="")  # 32 hexadecimal digits, or none


class StderrHandler(logging.Handler):
    """Writes each line at once: what a buffer holds back from a full disk fails once more at the end."""

    def __init__(self, on_lost: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.on_lost = on_lost
        self._raw = None
        own = sys.__stderr__
        if own is not None and sys.stderr is own:  # a test's is another
            self._raw = io.FileIO(own.fileno(), "w", closefd=False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n"
            if self._raw is None:
                sys.stderr.write(line)
            else:
                self._raw.write(line.encode(errors="backslashreplace"))
        except Exception:  # noqa: BLE001 (there is nowhere left to say what it was)
            self.on_lost()


def set_up(level: str, form: Literal["console", "json"]) -> StderrHandler:
    """Send every log line to stderr in one form; return what writes them."""
    handler = StderrHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(CONSOLE))
    handler.addFilter(_add_request)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    return handler


def _add_request(record: logging.LogRecord) -> bool:
    known = " ".join(filter(None, (request_id.get(), trace_id.get())))
    record.request = f" [{known}]" if known else ""
    fields: dict[str, Any] = getattr(record, FIELDS, {})
    # As JSON, a line break in a text starts no line of its own.
    details = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in fields.items())
    record.details = "".join(f" {each}" for each in details)
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
        if known := trace_id.get():
            line["trace_id"] = known
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
