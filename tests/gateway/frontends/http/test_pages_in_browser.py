"""The pages in a real browser: a question, its answer and why; keys, errors, hostile texts, access for all."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib.resources import files
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from gateway import api_keys
from gateway.api_keys import ApiKey
from gateway.backends.protocol import logits_of
from gateway.catalog.schema import Variant
from gateway.domain import Inference, Windows
from tests import browser, live
from tests.browser import Tab
from tests.certificates import Authority
from tests.fakes import (
    CONTEXT,
    QUESTION,
    FakeBackend,
    make_catalog,
    make_variant,
    small_and_large,
)
from tests.watched import WatchedBackend

KEY = api_keys.new_key()
LOCKED = {"mobile": ApiKey(sha256=api_keys.digest(KEY))}
HOSTILE = "<img src=x onerror='window.harm=1'>"
CONTROL = 2  # DevTools' modifier


class WholeContext(FakeBackend):
    """A model that answers with all of the context."""

    async def infer(self, variant: Variant, windows: Windows, budget_ms: float) -> Inference:
        start, end = (np.zeros(windows.input_ids.shape, np.float32) for _ in range(2))
        inside = np.flatnonzero(windows.is_context[0])
        start[0, inside[0]] = end[0, inside[-1]] = 9.0
        return Inference(logits_of(variant.name, windows, start, end), 0.0, 1.0)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One browser for all tests; each has a tab without a past."""
    with browser.running(tmp_path_factory.mktemp("chromium")) as address:
        yield address


async def open_playground(tab: Tab, running: live.Running, context: str = CONTEXT) -> None:
    await tab.open(f"http://{running.http_url}/")
    await tab.until("document.querySelector('#variant').options.length > 1")
    await tab.fill("#question", QUESTION)
    await tab.fill("#context", context)


async def ask_over_http(running: live.Running) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            f"http://{running.http_url}/v1/answer", json={"question": QUESTION, "context": CONTEXT}
        ) as reply,
    ):
        assert reply.status == 200


async def answer(tab: Tab) -> str:
    await tab.click("#form button[type=submit]")
    await tab.until("document.querySelector('.found')")
    return await tab.text("#answer")


async def test_an_answer_is_shown_in_its_context_with_the_reason_for_its_plan(
    chromium: str,
) -> None:
    """People would rather look than read JSON."""
    async with live.gateway() as running, browser.tab(chromium) as tab:
        await open_playground(tab, running)
        shown = await answer(tab)
        assert await tab.text(".found") == await tab.text(".context mark") == "The"
        assert await tab.text(".context") == CONTEXT
        for part in ("Score", "No answer", "Certified F1", "tokenize", "total"):
            assert part in shown
        assert await tab.evaluate("document.querySelectorAll('circle.point').length") == 2
        assert await tab.evaluate("document.querySelectorAll('circle.chosen').length") == 1
        assert "large: the cheapest plan that meets the SLO." in shown
        assert "certified below the floor" in shown
        assert tab.problems == []
        assert {url.split("/")[2] for url in tab.requested} == {running.http_url}


async def test_sliders_are_sent_once_they_are_moved(chromium: str) -> None:
    """An untouched slider must not override the class; the keyboard moves it as a hand does."""
    async with live.gateway() as running, browser.tab(chromium) as tab:
        await open_playground(tab, running)
        assert "SLO-Latency-Ms" not in await tab.evaluate(
            "document.querySelector('#copy').textContent"
        )
        await tab.evaluate("document.querySelector('#floor').value = 0.4")
        await tab.evaluate("document.querySelector('#floor').focus()")
        await tab.press("ArrowRight")
        assert await tab.text("#floor-value") == "0.405"
        await tab.until("document.querySelector('#forecast').innerText.includes('small')")
        copied = await tab.evaluate("document.querySelector('#copy').textContent")
        assert "-H 'SLO-Min-F1: 0.405'" in copied
        assert "min_f1=0.405" in copied
        await tab.evaluate("document.querySelector('#question').focus()")
        await tab.press("Enter", CONTROL)
        await tab.until(
            "document.querySelector('#answer').innerText.includes('small: the cheapest')"
        )


async def test_the_same_question_is_shown_under_several_slos(chromium: str) -> None:
    """What an SLO costs is seen beside another."""
    async with live.gateway() as running, browser.tab(chromium) as tab:
        await open_playground(tab, running)
        await tab.click("#compare")
        await tab.until("!document.querySelector('#comparison').hidden")
        rows = await tab.evaluate(
            "[...document.querySelectorAll('#comparison tbody tr')].map(row => row.innerText)"
        )
        assert len(rows) == 5
        assert any("small" in row for row in rows)
        assert any("large" in row for row in rows)


async def test_texts_never_become_markup(chromium: str) -> None:
    """A context is often somebody else's text, and an answer is a piece of it."""
    async with (
        live.gateway_before(WholeContext(), small_and_large()) as running,
        browser.tab(chromium) as tab,
    ):
        await open_playground(tab, running, HOSTILE)
        await answer(tab)
        assert await tab.text(".found") == await tab.text(".context mark") == HOSTILE
        await tab.click("#compare")
        await tab.until("!document.querySelector('#comparison').hidden")
        assert await tab.evaluate("document.querySelectorAll('main img').length") == 0
        assert await tab.evaluate("window.harm === undefined")
        assert tab.problems == []


async def test_a_file_dropped_anywhere_becomes_the_context(chromium: str, tmp_path: Path) -> None:
    """A browser left to itself leaves the page to show the file, and what was written is lost."""
    text = "Caf\u00e9s close at nine.\nBars close at two."
    (file := tmp_path / "hours.txt").write_text(text, "utf-8")
    async with live.gateway() as running, browser.tab(chromium) as tab:
        await open_playground(tab, running)
        for place in ("#context", "h1"):
            await tab.fill("#context", CONTEXT)
            await tab.drop(place, file)
            await tab.until(f"document.querySelector('#context').value === {json.dumps(text)}")
        assert f"{len(text)} of" in await tab.text("#context-help")
        assert await tab.evaluate("document.querySelector('#question').value") == QUESTION
        assert await tab.evaluate("document.querySelectorAll('.dropping').length") == 0
        assert await answer(tab)
        assert await tab.text(".context") == text
        assert tab.problems == []


async def test_what_is_no_text_of_this_size_leaves_the_context_alone(
    chromium: str, tmp_path: Path
) -> None:
    """A folder has no text; a film would freeze the tab."""
    (folder := tmp_path / HOSTILE.replace("/", "")).mkdir()
    (file := tmp_path / "long.txt").write_bytes(b"a" * 401)
    async with live.gateway(max_context_chars=100) as running, browser.tab(chromium) as tab:
        await open_playground(tab, running)
        for path in (folder, file):
            await tab.drop("#context", path)
            await tab.until(
                f"document.querySelector('#status').innerText.includes({json.dumps(path.name)})"
            )
        assert await tab.evaluate("document.querySelector('#context').value") == CONTEXT
        assert await tab.evaluate("window.harm === undefined")
        assert tab.problems == []


async def copied(tab: Tab, name: str) -> str:
    await tab.evaluate(f"document.querySelector('#copy-{name}').open = true")
    await tab.click(f"#copy-{name} button")
    await tab.until(f"document.querySelector('#copy-{name} [role=status]').innerText === 'copied'")
    return str(await tab.evaluate("navigator.clipboard.readText()"))


async def output_of(*command: str) -> str:
    """Return what a program prints that has the key in its environment."""
    running = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "BERTIER_API_KEY": KEY, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    out, _ = await running.communicate()
    assert running.returncode == 0
    return out.decode()


async def test_what_is_copied_asks_the_same(chromium: str) -> None:
    """It is pasted into a terminal: quotes and $ in a text are text there, and the key stays out."""
    question, context = """Who's "$HOME"?\n$(exit 1)""", f"""\\n 'a' `b` \u2028 {CONTEXT}"""
    async with live.gateway(api_keys=LOCKED) as running, browser.tab(chromium) as tab:
        url = f"http://{running.http_url}"
        await tab.open(f"{url}/")
        await tab.until("document.querySelector('dialog[open]')")
        await tab.fill("#key-input", KEY)
        await tab.click("dialog button[type=submit]")
        await tab.until("document.querySelector('#variant').options.length > 1")
        await tab.let_copy(url, allowed=True)
        await tab.fill("#question", question)
        await tab.fill("#context", context)
        await tab.fill("#policy", "prefer-latency")
        await tab.fill("#floor", "0.4")
        command, program = [await copied(tab, name) for name in ("curl", "Python")]
        assert KEY not in command + program
        seen = running.backend.windows
        seen.clear()
        reply = await output_of("sh", "-c", command.replace("curl -i", "curl -s", 1))
        assert json.loads(reply)["plan"] == "small"
        assert "small" in await output_of(sys.executable, "-c", program)
        await answer(tab)
        ids = [windows.input_ids.tolist() for windows in seen]
        assert len(ids) == 3
        assert ids[0] == ids[1] == ids[2]


async def test_where_the_clipboard_is_closed_the_text_is_selected(chromium: str) -> None:
    """One press of a key away, in place of nothing."""
    async with live.gateway() as running, browser.tab(chromium) as tab:
        await open_playground(tab, running)
        await tab.let_copy(f"http://{running.http_url}", allowed=False)
        await tab.evaluate("document.querySelector('#copy-curl').open = true")
        await tab.click("#copy-curl button")
        await tab.until("getSelection().toString().startsWith('curl -i')")
        assert "selected" in await tab.text("#copy-curl [role=status]")


async def test_the_pages_work_over_tls(chromium: str, tmp_path: Path) -> None:
    """Nothing in them is bound to http, and the policy lets them ask their own host alone."""
    pair = Authority().sign("gateway").write(tmp_path, "gateway")
    async with (
        live.gateway(tls_certificate=pair[0], tls_key=pair[1]) as running,
        browser.tab(chromium) as tab,
    ):
        await tab.send("Security.setIgnoreCertificateErrors", ignore=True)
        url = f"https://{running.http_url}"
        await tab.open(f"{url}/")
        await tab.until("document.querySelector('#variant').options.length > 1")
        await tab.fill("#question", QUESTION)
        await tab.fill("#context", CONTEXT)
        assert await answer(tab)
        for snippet in ("curl", "Python"):
            text = await tab.evaluate(f"document.querySelector('#copy-{snippet}').textContent")
            assert url in text
        await tab.open(f"{url}/live")
        await tab.until("document.querySelector('#connection').innerText.includes('Ready')")
        await tab.open(f"{url}/docs")
        await tab.until("document.querySelector('.operation')")
        assert {tuple(each.split("/")[:3:2]) for each in tab.requested} == {
            ("https:", running.http_url)
        }
        assert tab.problems == []


async def test_names_of_plans_and_classes_never_become_markup(chromium: str) -> None:
    """The catalog's rules refuse such names; the pages must not depend on it."""
    names = HOSTILE, """'"`\\</title></svg><script>window.harm=1</script>"""
    catalog = make_catalog([make_variant(names[0], 5), make_variant(names[1], 20)], [0.5, 0.7])
    async with (
        live.gateway_before(WatchedBackend(), catalog) as running,
        browser.tab(chromium) as tab,
    ):
        slo_classes = running.service.settings.classes
        slo_classes[HOSTILE] = slo_classes["standard"]
        await open_playground(tab, running)
        options = (
            "[...document.querySelectorAll('#class option, #variant option')].map(o => o.value)"
        )
        assert {*names, HOSTILE} <= set(await tab.evaluate(options))
        await answer(tab)
        shown = await tab.text("#answer")
        assert all(name in shown for name in names)
        await tab.click("#compare")
        await tab.until("!document.querySelector('#comparison').hidden")
        assert names[1] in await tab.text("#comparison")
        assert await unharmed(tab)
        await tab.open(f"http://{running.http_url}/live")
        await tab.until("document.querySelector('#certificates table')")
        await ask_over_http(running)
        await tab.until("document.querySelector('#plans table')")
        for id_ in ("certificates", "variants", "plans"):
            assert names[1] in await tab.text(f"#{id_}")
        assert await unharmed(tab)


async def unharmed(tab: Tab) -> bool:
    """Say whether no text became an element of the page, or ran."""
    made = await tab.evaluate(
        "document.querySelectorAll('main img, main script, body > img').length"
    )
    return made == 0 and await tab.evaluate("window.harm === undefined") and tab.problems == []


async def test_the_browser_refuses_markup_and_code_of_texts(chromium: str) -> None:
    """The second wall: a page that would set markup cannot."""
    async with live.gateway() as running, browser.tab(chromium) as tab:
        await open_playground(tab, running)
        tried = "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'set'; } catch (e) { return e.name; } })()"
        assert await tab.evaluate(tried) == "TypeError"
        inline = "{const s = document.createElement('style'); s.textContent = 'body{color:red}'; document.head.append(s)}"
        await tab.evaluate(inline)
        assert await tab.evaluate("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"


async def test_a_key_is_asked_for_and_kept_in_the_tab_alone(chromium: str) -> None:
    """A shared computer must not keep it."""
    async with live.gateway(api_keys=LOCKED) as running, browser.tab(chromium) as tab:
        await tab.open(f"http://{running.http_url}/")
        await tab.until("document.querySelector('dialog[open]')")
        await tab.fill("#key-input", "wrong")
        await tab.click("dialog button[type=submit]")
        await tab.until("document.querySelector('dialog[open] [role=alert]')")
        await tab.fill("#key-input", KEY)
        await tab.click("dialog button[type=submit]")
        await tab.until("document.querySelector('#variant').options.length > 1")
        assert await answer(tab)
        assert await tab.evaluate("Object.values(sessionStorage)") == [KEY]
        assert await tab.evaluate("localStorage.length + document.cookie.length") == 0
        assert KEY not in await tab.evaluate("document.documentElement.outerHTML")
        await tab.click("#key button")
        assert await tab.evaluate("sessionStorage.length") == 0


async def test_an_slo_that_cannot_be_met_shows_what_can(chromium: str) -> None:
    """A refusal says what to do next."""
    async with live.gateway() as running, browser.tab(chromium) as tab:
        await open_playground(tab, running)
        await tab.fill("#policy", "strict")
        await tab.fill("#floor", "0.9")  # by no plan; a short target might end at its deadline
        await tab.click("#form button[type=submit]")
        await tab.until("document.querySelector('#status .failure')")
        shown = await tab.text("#status")
        assert "(422)" in shown
        assert "Allow more time or a lower F1 floor" in shown
        await tab.click("#status table button")
        assert await tab.evaluate("document.querySelector('#latency-own').checked")
        assert float(await tab.text("#floor-value")) in (0.5, 0.7)
        await tab.fill("#policy", "prefer-accuracy")
        await tab.click("#form button[type=submit]")
        await tab.until("document.querySelector('.found')")


async def test_a_busy_gateway_differs_from_a_broken_one(chromium: str) -> None:
    """429 asks for patience."""
    async with (
        live.gateway(max_in_flight=1) as running,
        browser.tab(chromium) as tab,
        aiohttp.ClientSession() as http,
    ):
        await open_playground(tab, running)
        gate = running.backend.gate = asyncio.Event()
        asked = len(running.backend.asked)

        async def ask_another() -> int:
            body = {"question": QUESTION, "context": CONTEXT}
            slow = {"SLO-Class": "batch"}
            url = f"http://{running.http_url}/v1/answer"
            async with http.post(url, json=body, headers=slow) as reply:
                return reply.status

        other = asyncio.create_task(ask_another())
        await running.backend.until_asked(asked + 1)
        await tab.click("#form button[type=submit]")
        await tab.until("document.querySelector('#status .failure')")
        shown = await tab.text("#status")
        gate.set()
        assert await other == 200
        assert "(429)" in shown
        assert "too busy" in shown


async def test_a_gateway_that_is_gone_is_said_so(chromium: str) -> None:
    """Nothing that was written is lost."""
    async with browser.tab(chromium) as tab, AsyncExitStack() as stack:
        running = await stack.enter_async_context(live.gateway())
        await open_playground(tab, running)
        await stack.aclose()
        await tab.click("#form button[type=submit]")
        await tab.until("document.querySelector('#status').innerText.includes('cannot be reached')")
        assert await tab.evaluate("document.querySelector('#context').value") == CONTEXT


async def test_the_live_view_counts_and_says_when_it_is_disconnected(chromium: str) -> None:
    """Old figures must not look like new ones."""
    async with browser.tab(chromium) as tab, AsyncExitStack() as stack:
        running = await stack.enter_async_context(live.gateway())
        await tab.open(f"http://{running.http_url}/live")
        await tab.until("document.querySelector('#certificates table')")
        assert "Ready" in await tab.text("#connection")
        assert "0.700" in await tab.text("#certificates")
        await ask_over_http(running)
        await tab.until("document.querySelector('#plans table')")
        assert "large" in await tab.text("#plans")
        await tab.until("document.querySelector('#classes').innerText.includes('100 %')")
        await stack.aclose()
        await tab.until("document.querySelector('#connection').innerText.includes('Disconnected')")
        assert await tab.evaluate("document.querySelector('#figures').classList.contains('stale')")


async def test_the_live_view_says_that_metrics_are_elsewhere(chromium: str) -> None:
    """A zero would be a lie."""
    async with live.gateway(metrics_port=0) as running, browser.tab(chromium) as tab:
        await tab.open(f"http://{running.http_url}/live")
        await tab.until("document.querySelector('#connection').innerText.includes('metrics_port')")
        assert "Not known" in await tab.text("#tiles")


async def test_the_reference_has_every_operation(chromium: str) -> None:
    """It is drawn from the document that the gateway serves."""
    async with live.gateway() as running, browser.tab(chromium) as tab:
        await tab.open(f"http://{running.http_url}/docs")
        await tab.until("document.querySelector('.operation')")
        paths = await tab.evaluate("fetch('openapi.json').then(r => r.json()).then(d => d.paths)")
        shown = await tab.evaluate(
            "[...document.querySelectorAll('.operation h2')].map(h => h.textContent)"
        )
        wanted = [f"{method.upper()} {path}" for path, item in paths.items() for method in item]
        assert sorted(shown) == sorted(wanted)
        links = "[...document.querySelectorAll('a[href^=\"#\"]')].filter(a => !document.getElementById(a.hash.slice(1))).length"
        assert await tab.evaluate(links) == 0


@pytest.mark.parametrize("path", ["", "live", "docs"])
async def test_a_page_is_open_to_all_readers_at_every_width(chromium: str, path: str) -> None:
    """axe looks for what a screen reader or weak eyes would miss; a phone must not scroll sideways."""
    axe = files("axe_core_python").joinpath("axe.min.js").read_text("utf-8")
    async with live.gateway() as running, browser.tab(chromium) as tab:
        await tab.open(f"http://{running.http_url}/{path}")
        if path == "":
            await open_playground(tab, running)
            await answer(tab)
        await tab.until("document.querySelector('table')")
        await tab.evaluate(f"{axe}; 0")
        for width, dark, colours in ((1280, False, True), (800, True, True), (390, False, False)):
            await tab.look(width, dark=dark)
            assert await tab.evaluate("document.documentElement.scrollWidth") <= width
            # Colours cost most of the time, and are the same at every width.
            rules = {"color-contrast": {"enabled": colours}}
            options = json.dumps({"resultTypes": ["violations"], "rules": rules})
            found = await tab.evaluate(
                f"axe.run({options}).then(r => JSON.stringify(r.violations.map(v => [v.id, v.nodes.map(n => n.html)])))"
            )
            assert json.loads(found) == []
