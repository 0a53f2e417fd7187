"""Runs a search service until it is told to stop."""

import gc
import signal
import socket
from types import FrameType

import uvicorn

from vrag_jax.serving.connections import protocol
from vrag_jax.serving.live import LiveIndex
from vrag_jax.serving.search_service import create_app
from vrag_jax.serving.service_config import ServiceConfig

_HEADER_BYTES = 1 << 16  # Of a request beside its URL.


def serve(live: LiveIndex, config: ServiceConfig) -> None:
    """Serves until SIGTERM or SIGINT; requests that are under way are answered first.

    Args:
      live: pages and index.
      config: where and how.

    Raises:
      OSError: if the address is taken or is not this machine's; the message names it.
    """
    with listen(config) as listener:
        host, port = listener.getsockname()[:2]
        server = uvicorn.Server(server_config(live, config))

        def stop(number: int, frame: FrameType | None) -> None:
            del number, frame
            server.should_exit = True

        # Ours until the server has its own, and again when it has stopped: it passes on then
        # what it has got, which must not end the process in another way.
        old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        print(f'serving {len(live.current.store)} pages on {_url(host, port)}', flush=True)
        # What is loaded stays: looking through it for garbage would stop all requests for
        # a tenth of a second, again and again.
        gc.collect()
        gc.freeze()
        try:
            server.run(sockets=[listener])
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
        print('stopped', flush=True)


def server_config(live: LiveIndex, config: ServiceConfig) -> uvicorn.Config:
    """Returns how the application is run, with the limits on connections."""
    limits = config.limits
    return uvicorn.Config(
        create_app(live, config), log_level='warning', access_log=False, ws='none',
        # The one parser whose limit on the URL is ours to set.
        http=protocol(limits), h11_max_incomplete_event_size=limits.url_bytes + _HEADER_BYTES,
        timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]  # Any number will do.
        timeout_graceful_shutdown=max(1, round(config.shutdown_seconds)))


def listen(config: ServiceConfig) -> socket.socket:
    """Returns a socket that listens where the config says.

    Raises:
      OSError: naming the address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise OSError(f'cannot listen on {_url(config.host, config.port)}: {error}') from error
    return listener


def _url(host: str, port: int) -> str:
    return f'http://[{host}]:{port}' if ':' in host else f'http://{host}:{port}'
