"""Live sockets and pipes as arguments of a task: the worker gets the connection itself.

A server accepts connections in one place and has each served by a worker. With the standard
library's pool a socket can be sent only with the help of a background thread that listens on an
address; here its descriptor rides along with the task.

Run it: ``python examples/live_socket.py``
"""

from __future__ import annotations

import os
import socket
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from pairpool import Pool


def serve(client: socket.socket) -> int:
    """Answer one client: every line comes back in capitals. Return the pid of who has served it."""
    with client, client.makefile("rw") as lines:
        for line in lines:
            lines.write(line.upper())
            lines.flush()
    return os.getpid()


def report_progress(pipe: Connection, steps: int) -> str:
    """Do something in steps, telling of each through a pipe while the task is running."""
    with pipe:
        for step in range(1, steps + 1):
            pipe.send(f"step {step} of {steps}")
    return "finished"


def serve_clients(pool: Pool) -> None:
    """Accept two clients here, and let the workers talk to them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for text in ("first client", "second client"):
            with socket.create_connection(listener.getsockname()) as client:
                accepted, _ = listener.accept()
                with accepted:  # the worker has its own copy of the descriptor
                    served_by = pool.apply_async(serve, (accepted,))
                client.sendall(f"{text}\n".encode())
                client.shutdown(socket.SHUT_WR)
                with client.makefile() as answer:
                    print(answer.read().strip(), "- by a worker:", served_by.get() != os.getpid())


def follow_progress(pool: Pool) -> None:
    """Read from a pipe what a running task tells."""
    ours, theirs = Pipe(duplex=False)
    with ours:
        result = pool.apply_async(report_progress, (theirs, 3))
        theirs.close()
        try:
            while True:
                print(ours.recv())
        except EOFError:
            print(result.get())


def main() -> None:
    """Show both."""
    with Pool(2) as pool:
        serve_clients(pool)
        follow_progress(pool)
    pool.join()


if __name__ == "__main__":
    main()
