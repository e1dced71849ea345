"""A headless Chromium, driven over its DevTools protocol: open a page, look at it, type into it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
LIMIT_S = 60.0  # axe needs 10 on a busy host
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39}  # to their codes


def program() -> str:
    """Return the browser of this host; it is never skipped: `make test` installs one."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert found, f"none of {', '.join(PROGRAMS)} is installed: run deploy/setup/system_packages.sh"
    return found


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Run a browser whose files are in `folder`; yield the address of its DevTools."""
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--mute-audio",
    )
    own = ("--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program(), *flags, *own], stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield _address(process, folder)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # Debian's program is a script that waits for it
        process.wait()


def _address(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Return where the browser listens, once it has written so."""
    file, end = folder / "DevToolsActivePort", time.monotonic() + LIMIT_S
    while not (file.exists() and len(lines := file.read_text().split()) == 2):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.02)  # it tells nobody in another way
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"


class Refused(Exception):
    """The browser did not do what it was asked."""


class Tab:
    """A tab in a context of its own: no cookies or storage of others."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self._context: str | None = None
        self.problems: list[str] = []  # exceptions, violations of the policy, and other errors
        self.requested: list[str] = []  # URLs

    async def read(self) -> None:
        async for message in self._socket:
            reply = json.loads(message.data)
            if "id" in reply:
                self._waiting.pop(reply["id"]).set_result(reply)
            else:
                self._note(reply["method"], reply["params"])

    def _note(self, method: str, params: Mapping[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['source']}: {params['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the result of a command."""
        number = next(self._ids)
        answered = self._waiting[number] = asyncio.get_running_loop().create_future()
        session = {} if self._session is None else {"sessionId": self._session}
        await self._socket.send_str(
            json.dumps({"id": number, "method": method, "params": params, **session})
        )
        async with asyncio.timeout(LIMIT_S):
            reply: dict[str, Any] = await answered
        if "error" in reply:
            raise Refused(f"{method}: {reply['error']}")
        result: dict[str, Any] = reply["result"]
        return result

    async def attach(self) -> None:
        context = (await self.send("Target.createBrowserContext", disposeOnDetach=True))[
            "browserContextId"
        ]
        made = await self.send("Target.createTarget", url="about:blank", browserContextId=context)
        target = made["targetId"]
        attached = await self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session, self._context = attached["sessionId"], context
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")

    async def open(self, url: str) -> None:
        """Return when the page and its modules are there."""
        await self.send("Page.navigate", url=url)
        await self.until(
            f"location.href === {json.dumps(url)} && document.readyState === 'complete'"
        )

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, awaited."""
        reply = await self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    async def until(self, condition: str) -> None:
        """Return when a condition holds. Raises: TimeoutError."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not await self._holds(condition):
                    pass  # the page waits a little before it looks
        except TimeoutError as exc:
            text = await self.evaluate("document.body.innerText")
            raise TimeoutError(f"{condition}\n{self.problems}\n{text}") from exc

    async def _holds(self, condition: str) -> bool:
        """Say whether it holds in a moment; while one page gives way to another nothing does."""
        safely = f"(() => {{ try {{ return Boolean({condition}); }} catch {{ return false; }} }})()"
        look = f"new Promise(tell => setTimeout(() => tell({safely}), 20))"
        try:
            reply = await self.send(
                "Runtime.evaluate", expression=look, awaitPromise=True, returnByValue=True
            )
        except Refused:
            return False
        return reply["result"].get("value") is True

    async def text(self, selector: str) -> str:
        """Return what can be read in an element."""
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def fill(self, selector: str, value: str) -> None:
        """Set the value of a field as its user would."""
        await self.evaluate(
            f"{{ const field = document.querySelector({json.dumps(selector)});"
            f" field.value = {json.dumps(value)};"
            " field.dispatchEvent(new Event('input', {bubbles: true})); }"
        )

    async def click(self, selector: str) -> None:
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    async def drop(self, selector: str, path: Path) -> None:
        """Drop a file of this host onto the middle of an element."""
        x, y = await self.evaluate(
            f"{{ const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " [box.x + box.width / 2, box.y + box.height / 2]; }"
        )
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    async def let_copy(self, url: str, *, allowed: bool) -> None:
        """Let the page use the clipboard, or not, as its user would when asked."""
        await self.send("Emulation.setFocusEmulationEnabled", enabled=True)
        for name in ("clipboard-read", "clipboard-write"):
            await self.send(
                "Browser.setPermission",
                permission={"name": name},
                setting="granted" if allowed else "denied",
                origin=url,
                browserContextId=self._context,
            )

    async def press(self, key: str, modifiers: int = 0) -> None:
        code = KEYS[key]
        text = {"Enter": "\r", " ": " "}.get(key)
        down = {"text": text} if text and not modifiers else {}
        for kind, extra in (("keyDown" if down else "rawKeyDown", down), ("keyUp", {})):
            await self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                modifiers=modifiers,
                **{"windowsVirtualKeyCode": code, **extra},
            )

    async def look(self, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Show the page at a width, light or dark."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme, still])

    async def screenshot(self, *, whole: bool = True) -> bytes:
        """Return a PNG of the page."""
        reply = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(reply["data"])


@asynccontextmanager
async def tab(address: str) -> AsyncIterator[Tab]:
    """Open a tab for the length of the block."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(address, max_msg_size=0) as socket,
    ):
        found = Tab(socket)
        reading = asyncio.create_task(found.read())
        try:
            await found.attach()
            yield found
        finally:
            reading.cancel()
