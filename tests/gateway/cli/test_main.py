"""`bertier` as a person runs it: against a gateway, and against a repository with a real model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.catalog import store
from gateway.catalog.schema import GoldenLogits
from gateway.cli import main
from gateway.domain import Question
from gateway.qa import codec
from tests import live, mixed, tiny
from tests.fakes import (
    CONTEXT,
    QUESTION,
    TOKENIZER,
    make_cascade,
    make_catalog,
    make_variant,
    small_and_large,
    with_loss,
    with_topic,
)
from tests.live import Running

Capture = pytest.CaptureFixture[str]


@pytest.fixture
async def gateway() -> AsyncIterator[Running]:
    async with live.gateway() as running:
        yield running


@pytest.fixture
async def mixed_gateway() -> AsyncIterator[Running]:
    async with live.gateway(with_topic(small_and_large())) as running:
        yield running


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a repository that is whole: one tiny model, with its own golden logits."""
    sha256 = tiny.write_model(tmp_path, "small")
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    windows = codec.SpanEncoder.from_file(TOKENIZER).encode(Question(QUESTION, CONTEXT))
    ids, mask, types = windows.input_ids, windows.attention_mask, windows.token_type_ids
    start, end = tiny.expected_logits(ids, mask, types)
    golden = GoldenLogits(tuple(start[0].tolist()), tuple(end[0].tolist()))
    variant = make_variant("small", 5, sha256=sha256, batch_invariant=True)
    store.write(tmp_path, make_catalog([replace(variant, golden=(golden,))], [0.5]))
    return tmp_path


async def run(*arguments: str) -> int:
    """Run the command beside the gateway's loop, as the process of its own that it is."""
    return await asyncio.to_thread(main.main, arguments)


def error_line(capsys: Capture) -> str:
    """Return the one line on stderr."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


async def test_ask_prints_the_answer_and_why(gateway: Running, capsys: Capture) -> None:
    """A newcomer sees the effect of the SLO: the chosen plan and why the others were rejected."""
    url = f"http://{gateway.http_url}"
    assert await run("ask", QUESTION, "--context", CONTEXT, "--min-f1", "0.6", "--url", url) == 0
    answer, *why = capsys.readouterr().out.splitlines()
    assert answer == "The"
    assert any(line.startswith("by large (meets_slo)") for line in why)
    assert any(line.split()[0:1] == ["small"] and "below-floor" in line for line in why)
    assert any(line.split()[0:1] == ["large"] and "chosen" in line for line in why)


async def test_ask_prints_json_on_one_line(
    gateway: Running, capsys: Capture, tmp_path: Path
) -> None:
    """For scripts: what the HTTP API says, and nothing else."""
    (tmp_path / "context.txt").write_text(CONTEXT)
    context, url = str(tmp_path / "context.txt"), f"http://{gateway.http_url}"
    arguments = ("--variant", "small", "--top-k", "3", "--json", "--url", url)
    assert await run("ask", QUESTION, "--context", context, *arguments) == 0
    reply = json.loads(capsys.readouterr().out)
    assert (reply["answer"], reply["variant"]) == ("The", "small")
    assert "explain" not in reply


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--latency-ms", "nan"), "SLO-Latency-Ms"),
        (("--min-f1", "2"), "SLO-Min-F1"),
        (("--class", "nobody"), "SLO-Class"),
        (("--min-f1", "0.99", "--policy", "strict"), "feasible: small"),
    ],
)
async def test_a_refusal_is_one_line(
    gateway: Running, capsys: Capture, arguments: tuple[str, ...], text: str
) -> None:
    """The gateway's own words; no traceback."""
    url = f"http://{gateway.http_url}"
    assert await run("ask", QUESTION, "--context", CONTEXT, *arguments, "--url", url) == 1
    assert text in error_line(capsys)


async def test_plan_shows_what_is_feasible(gateway: Running, capsys: Capture) -> None:
    """The exit code says whether the SLO can be met."""
    url = f"http://{gateway.http_url}"
    assert await run("plan", "--latency-ms", "200", "--min-f1", "0.6", "--url", url) == 0
    assert "large meets it" in capsys.readouterr().out
    assert await run("plan", "--latency-ms", "12", "--min-f1", "0.6", "--url", url) == 1
    assert "feasible when idle: small" in capsys.readouterr().out


async def test_variants_are_shown_as_served(gateway: Running, capsys: Capture) -> None:
    """Trust is known to a gateway only: it has asked the models."""
    assert await run("variants", "--url", f"http://{gateway.http_url}") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][:9] == ["small", "0.520", "(1000)", "0.500", "-", "-", "7.5", "/", "7.5"]
    assert rows[1][-1] == rows[2][-1] == "certified"


NOWHERE = "http://127.0.0.1:1"


def test_no_gateway_says_how_to_start_one(capsys: Capture) -> None:
    """The most likely first mistake."""
    assert main.main(["ask", QUESTION, "--context", CONTEXT, "--url", NOWHERE]) == 1
    line = error_line(capsys)
    assert "make run" in line
    assert "--embedded" in line


def test_variants_come_from_the_repository_where_no_gateway_runs(
    repository: Path, capsys: Capture
) -> None:
    """What was published can be looked at without serving it."""
    assert main.main(["variants", "--model-repository", str(repository), "--url", NOWHERE]) == 0
    out = capsys.readouterr().out
    assert "not asked" in out
    assert f"from {repository}" in out


def test_variants_show_f1_and_floor_of_the_same_questions(tmp_path: Path, capsys: Capture) -> None:
    """Beside a floor certified on one data set, the F1 of another says nothing."""
    variant = make_variant("small", 5)
    other = replace(variant.quality[0], data="other.json", f1=0.9, n=77)
    catalog = make_catalog([replace(variant, quality=(other, *variant.quality))], [0.5])
    (plan,) = catalog.plans
    certificate = replace(plan.certificate, data="mine.json", f1=0.61, floor=0.5, n_questions=300)
    store.write(tmp_path, replace(catalog, plans=(replace(plan, certificate=certificate),)))
    assert main.main(["variants", "--model-repository", str(tmp_path), "--url", NOWHERE]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][:4] == ["small", "0.610", "(300)", "0.500"]


def test_a_gateway_that_was_named_is_not_replaced_by_a_folder(capsys: Capture) -> None:
    """Who asks for one wants to know that it is gone."""
    assert main.main(["variants", "--url", NOWHERE]) == 1
    assert NOWHERE in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url", "localhost:8080"], "http:// or https://"),
        (["--url", "https://localhost:1", "--authority", "/nowhere.pem"], "/nowhere.pem"),
    ],
)
def test_an_address_that_cannot_be_asked_says_why(
    arguments: list[str], said: str, capsys: Capture
) -> None:
    """Before anybody is asked."""
    assert main.main(["plan", *arguments]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["/nowhere/text.txt", "text.md", "a/b"])
def test_a_file_that_is_not_there_is_no_context(name: str, capsys: Capture) -> None:
    """Its name is not what was asked about."""
    assert main.main(["ask", QUESTION, "--context", name, "--url", NOWHERE]) == 1
    assert "no such file" in capsys.readouterr().err


def test_cascades_are_shown_below_the_variants(tmp_path: Path, capsys: Capture) -> None:
    """What they ask, how often, and both certificates."""
    variants = [make_variant("small", 5), make_variant("large", 20)]
    catalog = make_catalog(variants, [0.5, 0.7])
    cascade = with_loss(make_cascade(variants, 0.68, threshold=0.5, reach=(1.0, 0.3)), 0.02)
    store.write(tmp_path, replace(catalog, plans=(*catalog.plans, cascade)))
    assert main.main(["variants", "--model-repository", str(tmp_path), "--url", NOWHERE]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["small-large", "small,", "large", "1.00", "0.30", "0.680", "0.020"] in rows


def test_ask_answers_in_this_process(repository: Path, capsys: Capture) -> None:
    """Trying the models needs no server."""
    where = ("--embedded", "--model-repository", str(repository))
    assert main.main(["ask", QUESTION, "--context", CONTEXT, "--json", *where]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["answer"] == CONTEXT[reply["start"] : reply["end"]] != ""
    assert main.main(["plan", "--json", *where[1:]]) in (0, 1)  # the repository says it, too
    assert json.loads(capsys.readouterr().out)["options"]


def test_a_whole_repository_is_valid(repository: Path, capsys: Capture) -> None:
    """Its models were loaded and said what they said when they were certified."""
    assert main.main(["validate", str(repository)]) == 0
    assert "small transferred" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "old", "new", "text"),
    [
        ("small/config.pbtxt", 'name: "small"', 'name: "large"', "name is 'large'"),
        ("small/config.pbtxt", '"onnxruntime"', '"pytorch"', "it must be 'onnxruntime'"),
        ("catalog.json", "101.0,", "111.0,", "golden answers"),
        ("catalog.json", '"schema_version": 1', '"schema_version": 9', "upgrade"),
        ("catalog.json", '"batch_invariant": true', '"batch_invariant": false', "max_batch_size"),
    ],
)
def test_what_is_wrong_with_a_repository_is_printed(
    repository: Path, capsys: Capture, name: str, old: str, new: str, text: str
) -> None:
    """One line a problem, before anybody is served from it."""
    path = repository / name
    changed = path.read_text().replace(old, new).replace(_spaced(old), _spaced(new))
    assert changed != path.read_text()
    path.write_text(changed)
    assert main.main(["validate", str(repository)]) == 1
    assert text in capsys.readouterr().out


def _spaced(text: str) -> str:
    return text.replace('":', '": ')


def test_a_corrupt_model_is_named(repository: Path, capsys: Capture) -> None:
    """A file that no engine loads is found before it is served."""
    (repository / "small" / "1" / "model.onnx").write_bytes(b"corrupt")
    assert main.main(["validate", str(repository)]) == 1
    assert "model.onnx: sha256 is" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["classes.toml", "classes.candidate.toml"])
def test_classes_that_a_gateway_would_not_use_are_named(
    repository: Path, capsys: Capture, name: str
) -> None:
    """Before a gateway that runs refuses them."""
    sound = '[classes.standard]\nlatency_ms = 100\npolicy = "prefer-latency"\n'
    (repository / name).write_text(sound)
    assert main.main(["validate", str(repository)]) == 0
    (repository / name).write_text(sound.replace("standard", "fast"))
    assert main.main(["validate", str(repository)]) == 1
    assert f"{name}: classes.fast: the settings have no such class" in capsys.readouterr().out


def test_a_context_that_is_no_text_is_refused(tmp_path: Path, capsys: Capture) -> None:
    """A picture has no answers."""
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff")
    assert main.main(["ask", QUESTION, "--context", str(tmp_path / "picture")]) == 1
    assert "UTF-8" in error_line(capsys)


def test_a_bad_setting_is_one_line(capsys: Capture) -> None:
    """Flags are settings, and checked as such."""
    assert main.main(["serve", "--http-port", "99999"]) == 1
    assert "http_port" in error_line(capsys)


def test_a_settings_file_that_is_no_toml_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A typing error is one line on stderr, not a traceback."""
    (tmp_path / "bertier.toml").write_text("host = [")
    monkeypatch.chdir(tmp_path)
    assert main.main(["serve"]) == 1
    assert "bertier.toml" in error_line(capsys)


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["ask"], ["serve", "--http-port", "x"]])
def test_wrong_usage_exits_with_two(arguments: list[str], capsys: Capture) -> None:
    """As every other command line program does."""
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2
    assert "usage: bertier" in capsys.readouterr().err


def test_the_version_is_printed(capsys: Capture) -> None:
    """The first question of every bug report."""
    with pytest.raises(SystemExit) as caught:
        main.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("bertier ")


async def test_state_shows_a_gateway_s_inner_state(gateway: Running, capsys: Capture) -> None:
    """The person on call has a shell, and no dashboard for every number."""
    assert await run("state", "--url", f"http://{gateway.http_url}") == 0
    printed = capsys.readouterr().out
    assert "admission  0 of 1024 in flight" in printed
    assert "large" in printed
    assert await run("state", "--url", f"http://{gateway.http_url}", "--json") == 0
    assert json.loads(capsys.readouterr().out)["queue"]["in_flight"] == 0


async def test_state_says_where_it_is(capsys: Capture) -> None:
    """With a port for operations the other one has no state."""
    async with live.gateway(metrics_port=9999) as running:
        assert await run("state", "--url", f"http://{running.http_url}") == 1
    assert "metrics_port" in error_line(capsys)


async def test_classify_prints_the_label_and_why(
    tmp_path: Path, capsys: Capture, mixed_gateway: Running
) -> None:
    """Of a gateway and of a repository alike: every label, the plan, and why it was chosen."""
    mixed.write(tmp_path)
    url = f"http://{mixed_gateway.http_url}"
    assert await run("classify", "The boat left.", "--min-f1", "0.8", "--url", url) == 0
    label, *why = capsys.readouterr().out.splitlines()
    assert (label, why[0]) == ("sport", "score 0.91, task topic")
    assert any(line.startswith("by topic-small (meets_slo)") for line in why)
    asked = ("classify", "is it", "i say no", "--task", "tiny-says", "--json")
    assert await run(*asked, "--embedded", "--model-repository", str(tmp_path)) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "no"


async def test_several_tasks_are_told_apart(tmp_path: Path, capsys: Capture) -> None:
    """In the table of variants, in a plan, and by the check of a repository."""
    mixed.write(tmp_path)
    assert await run("variants", "--model-repository", str(tmp_path)) == 0
    table = capsys.readouterr().out
    assert "F1 of a classification is its accuracy" in table
    assert [line.split()[1] for line in table.splitlines()[1:5]] == [
        *("qa", "tiny-kind", "tiny-kind", "tiny-says"),
    ]
    assert await run("validate", str(tmp_path)) == 0
    assert "tiny-says" in capsys.readouterr().out
    where = ("--embedded", "--model-repository", str(tmp_path))
    await run("plan", "--task", "tiny-says", "--latency-ms", "60000", *where)
    assert "tiny-says meets it" in capsys.readouterr().out
