"""What a signal becomes: told by the innermost, taken for no failure on the way, and the handlers put back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from potstill.errors import Stopped
from potstill.served.stopping import stoppable


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


@stoppable(lambda: "half-way")
def interrupted(number: signal.Signals) -> None:
    try:
        os.kill(os.getpid(), number)
    except Exception as error:
        pytest.fail(f"it was taken for a failure: {error!r}")


@stoppable()
def quiet_then_interrupted() -> None:
    with stoppable(lambda: "half-way"):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_inner_tells_and_no_handler_of_failures_is_in_the_way(number: signal.Signals, code: int) -> None:
    with pytest.raises(Stopped, match="stopped half-way") as caught, stoppable():
        interrupted(number)
    assert caught.value.exit_code == code


def test_behind_an_inner_the_outer_still_listens() -> None:
    with pytest.raises(Stopped, match="stopped with nothing lost"):
        quiet_then_interrupted()


def test_in_another_thread_it_is_left_out() -> None:
    done: list[bool] = []

    def work() -> None:
        with stoppable():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
