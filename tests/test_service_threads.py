"""Threads whose end nobody has to wait for."""

import subprocess
import sys
import threading

import pytest
from conftest import eventually

from fewshot.service.threads import Threads


def test_work_is_done_in_order_and_its_result_or_error_is_given():
    threads = Threads(1, "test")
    order: list[int] = []
    futures = [threads.submit(order.append, number) for number in range(5)]
    failed = threads.submit(int, "no number", base=10)
    assert [future.result(20) for future in futures] == [None] * 5
    assert order == list(range(5))
    with pytest.raises(ValueError, match="no number"):
        failed.result(20)
    assert threads.submit(int, "12", base=3).result(20) == 5
    assert threads.close(20)
    with pytest.raises(RuntimeError, match="'test' are closed"):
        threads.submit(int)


def test_so_many_work_at_once_as_there_are_threads():
    threads, meeting = Threads(3, "test"), threading.Barrier(3)
    assert sorted(future.result(20) for future in [threads.submit(meeting.wait, 20) for _ in range(3)]) == [0, 1, 2]
    assert threads.close(20)


@pytest.mark.parametrize("drop", [False, True])
def test_closing_waits_no_longer_than_it_may_and_tells_what_is_left(drop, caplog):
    threads, gate, entered = Threads(1, "test"), threading.Event(), threading.Event()

    def hold():
        entered.set()
        assert gate.wait(20)
        return "held"

    held, queued = threads.submit(hold), threads.submit(int, "7")
    assert entered.wait(20)
    assert not threads.close(0.0, drop=drop)
    assert "'test' are still at work" in caplog.text
    gate.set()
    assert held.result(20) == "held"
    assert queued.cancelled() if drop else queued.result(20) == 7
    eventually(lambda: threads.close(0.0))


def test_threads_that_were_given_nothing_are_closed_at_once(caplog):
    assert Threads(4, "test").close(0.0)
    assert not caplog.records


def test_a_process_ends_beside_work_that_does_not():
    script = (
        "import threading, time; from fewshot.service.threads import Threads\n"
        "threads, entered = Threads(1, 'test'), threading.Event()\n"
        "threads.submit(lambda: (entered.set(), time.sleep(600)))\n"
        "entered.wait(); threads.close(0.0); print('the end')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr
