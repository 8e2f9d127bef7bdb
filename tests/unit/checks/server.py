"""Servers on loopback, in threads: their connections are closed when the test goes on, whatever its own loop does."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

Answer = Callable[[socket.socket], None]


@contextmanager
def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Let a server answer each connection in a thread of its own; yield its port."""

    talking: list[threading.Thread] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            talking.append(threading.Thread(target=talk, args=(connection,), daemon=True))
            talking[-1].start()

    def talk(connection: socket.socket) -> None:
        try:
            if tls is not None:
                connection = tls.wrap_socket(connection, server_side=True)
            answer(connection)
        except OSError:
            pass
        finally:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=serve, daemon=True)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in (accepting, *talking):
                thread.join(60)


def read_head(connection: socket.socket) -> bytes:
    head = b""
    # A server of http does not wait for more of a TLS handshake.
    while b"\r\n\r\n" not in head and not head.startswith(b"\x16") and (chunk := connection.recv(4096)):
        head += chunk
    return head


def say(answer: bytes, heads: list[bytes] | None = None) -> Answer:
    """Answer a request's head with these bytes, and keep the head."""

    def talk(connection: socket.socket) -> None:
        head = read_head(connection)
        if heads is not None:
            heads.append(head)
        connection.sendall(answer)

    return talk


def say_nothing(connection: socket.socket) -> None:
    """Wait until the caller has closed."""
    while connection.recv(4096):
        pass
