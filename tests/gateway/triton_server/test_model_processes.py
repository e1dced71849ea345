"""Which processes of a Triton are lost, from what /proc says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.triton_server.model_processes import CERTAIN_MS, STUB, ModelProcesses

TRITON = 1_000_000_000  # no process has such a number
FIRST, SECOND = TRITON + 1, TRITON + 2


class Proc:
    """A /proc of a Triton and its model processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_ms = 0.0
        self.processes = ModelProcesses(folder, lambda: self.now_ms)
        self.set_children(FIRST, SECOND)
        for pid in (FIRST, SECOND):
            self.write(pid, "small")

    def set_children(self, *pids: int) -> None:
        threads = {
            TRITON: pids[:1],
            TRITON + 7: pids[1:],
        }  # each process is a child of the thread that made it
        for thread, children in threads.items():
            task = self.folder / str(TRITON) / "task" / str(thread)
            task.mkdir(parents=True, exist_ok=True)
            (task / "children").write_text(" ".join(map(str, children)))

    def write(self, pid: int, model: str, state: str = "S") -> None:
        folder = self.folder / str(pid)
        folder.mkdir(exist_ok=True)
        command = ["/x/python/" + STUB, f"/models/{model}/1/model.onnx", "prefix"]
        (folder / "cmdline").write_bytes(b"" if state == "Z" else "\0".join(command).encode())
        (folder / "stat").write_text(f"{pid} (a (b) c) {state} {TRITON} 1 1")

    def look(self, after_ms: float = 0.0) -> None:
        self.now_ms += after_ms
        self.processes.look(TRITON)

    def lost(self) -> list[int]:
        return [each.pid for each in self.processes.take_lost()]


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_the_processes_of_a_model_are_known(proc: Proc) -> None:
    """Whichever of Triton's threads has started them."""
    proc.look()
    assert proc.processes.of("small") == {FIRST, SECOND}
    assert proc.processes.of("large") == set()


@pytest.mark.parametrize(("state", "why"), [("Z", "has ended"), ("T", "was stopped")])
def test_one_that_ended_or_was_stopped_is_lost_once(proc: Proc, state: str, why: str) -> None:
    """After a moment: at an unloading Triton waits for them to end, and goes on at once."""
    proc.look()
    proc.write(FIRST, "small", state)
    proc.look()
    assert proc.lost() == []
    proc.look(CERTAIN_MS)
    (lost,) = proc.processes.take_lost()
    assert (lost.model, lost.pid) == ("small", FIRST)
    assert why in lost.why
    assert proc.processes.of("small") == {SECOND}
    assert not proc.processes.is_gone("small")
    proc.look(10 * CERTAIN_MS)
    assert proc.lost() == []


def test_a_model_is_gone_when_all_of_its_processes_are_lost(proc: Proc) -> None:
    """Of one whose processes were never found nothing is known."""
    proc.look()
    for pid in (FIRST, SECOND):
        proc.write(pid, "small", "Z")
    proc.look()
    proc.look(CERTAIN_MS)
    assert proc.processes.is_gone("small")
    assert not proc.processes.is_gone("large")


def test_a_short_pause_is_no_loss(proc: Proc) -> None:
    """It goes on before Triton has given it up."""
    proc.look()
    proc.write(FIRST, "small", "T")
    proc.look()
    proc.write(FIRST, "small", "S")
    proc.look(CERTAIN_MS)
    proc.write(FIRST, "small", "T")
    proc.look()
    assert proc.lost() == []


def test_one_that_was_unloaded_is_forgotten(proc: Proc) -> None:
    """Triton has taken note of its end."""
    proc.look()
    proc.set_children(SECOND)
    proc.look(10 * CERTAIN_MS)
    assert proc.lost() == []
    assert proc.processes.of("small") == {SECOND}


def test_other_processes_are_not_touched(proc: Proc) -> None:
    """A child that has not yet become one, and one that was never seen alive."""
    (proc.folder / str(FIRST) / "cmdline").write_bytes(b"/opt/tritonserver\0--flag")
    proc.write(SECOND, "small", "Z")
    proc.look()
    proc.look(10 * CERTAIN_MS)
    assert proc.processes.of("small") == set()
    assert proc.lost() == []


def test_another_triton_has_other_processes(proc: Proc) -> None:
    """After a restart nothing of the old one counts."""
    proc.look()
    proc.write(FIRST, "small", "Z")
    proc.look()
    proc.look(CERTAIN_MS)
    proc.processes.look(None)
    assert proc.processes.of("small") == set()
    assert proc.lost() == []
