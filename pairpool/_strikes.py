"""Whether an exception comes from the code that runs, or from a signal handler that struck the main thread in it."""

from __future__ import annotations

import dis
import functools
import signal
import threading

# That of `signal` makes an enum of what this returns, which takes 1.5 us.
from _signal import getsignal  # type: ignore[import-not-found]
from types import CodeType, FunctionType, MethodType

_RAISE = dis.opmap["RAISE_VARARGS"]
_SIGNALS = range(1, signal.NSIG)


def came_from_handler(error: BaseException) -> bool:
    """Whether a signal handler raised this, now that it is caught on the thread that it came up in.

    A handler written in Python stands in the traceback. The default one of SIGINT is written in C and does not; but
    where it raises KeyboardInterrupt there is no ``raise``.

    To be asked also where what the system raises is caught: the TimeoutError of an alarm is an OSError, too.

    This is asked of every object that plain pickling cannot do, and must take no longer than a few us.
    """
    if threading.current_thread() is not threading.main_thread():
        return False  # no handler runs there
    # Neither SIG_DFL nor SIG_IGN can be called, nor what stands for one that Python did not set.
    handlers = {_code_of(handler) for handler in filter(callable, map(getsignal, _SIGNALS))}
    last, following = None, error.__traceback__
    while following is not None:
        if following.tb_frame.f_code in handlers:
            return True
        last, following = following, following.tb_next
    if last is None or not isinstance(error, KeyboardInterrupt):
        return False
    by_default = getsignal(signal.SIGINT) is signal.default_int_handler
    return by_default and last.tb_frame.f_code.co_code[last.tb_lasti] != _RAISE


def _code_of(handler: object) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not isinstance(handler, FunctionType | MethodType):
        handler = type(handler).__call__
    return getattr(handler, "__code__", None)
