"""What Ctrl-C and SIGTERM do while a training notes them."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from genval.training.interruption import Interruption


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of a program in the foreground."""
    numbers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_one_ends_the_training(number, capfd):
    with pytest.raises(KeyboardInterrupt) as raised, Interruption() as interruption:
        os.kill(os.getpid(), number)
        assert interruption.number == number
        assert capfd.readouterr().err.count("ends after this step, with a checkpoint") == 1
        os.kill(os.getpid(), number)
    assert raised.value.args == (number,)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_other_processes_note_signals_silently(capfd):
    with Interruption(speaks=False) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.number == signal.SIGTERM and not capfd.readouterr().err


def test_ctrl_c_stays_ignored_in_the_background():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert not interruption.number
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_training_in_another_thread_leaves_the_signals_alone():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(Interruption().listen).result()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
