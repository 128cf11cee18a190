"""Whether an exception comes from the code that runs, or from a signal handler that struck the main thread in it."""

from __future__ import annotations

import dis
import functools
import signal
import threading
from types import CodeType, FunctionType, MethodType

_RAISE = dis.opmap["RAISE_VARARGS"]


def came_from_handler(error: BaseException) -> bool:
    """Whether a signal handler raised this, now that it is caught on the thread that it came up in.

    A handler written in Python stands in the traceback. The default one of SIGINT is written in C and does not; but
    where it raises KeyboardInterrupt there is no ``raise``.
    """
    if threading.current_thread() is not threading.main_thread():
        return False  # no handler runs there
    handlers = {_code_of(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    traceback, instruction = error.__traceback__, _RAISE
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if code in handlers:
            return True
        instruction = code.co_code[traceback.tb_lasti]
        traceback = traceback.tb_next
    by_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return by_default and isinstance(error, KeyboardInterrupt) and instruction != _RAISE


def _code_of(handler: object) -> CodeType | None:
    if not callable(handler):
        return None  # SIG_DFL, SIG_IGN, or one that Python did not set
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not isinstance(handler, FunctionType | MethodType):
        handler = type(handler).__call__
    return getattr(handler, "__code__", None)
