"""What a search service is configured with; needs nothing of the extra `serve`."""

import dataclasses
import importlib.util

from vrag_jax.config import ConfigError

_PACKAGES = ('fastapi', 'uvicorn', 'prometheus_client')


@dataclasses.dataclass(frozen=True)
class ServiceLimits:
    """What a request may ask for; more is an error that names the field.

    Attributes:
      body_bytes: of a request's body.
      url_bytes: of a request's URL, which holds the queries of GET.
      header_seconds: from the first byte of a request until its headers have to be there.
      body_seconds: from then until the body has to be there.
      answer_seconds: in which a client has to take an answer.
      idle_seconds: after which a connection without a request is closed; longer than clients
        keep one, so that they close it, not the service while a request is on its way.
      connections: at the same time; the service hangs up on more.
      queries: in one request.
      query_chars: of one query.
      k: hits a query.
      hits: queries times k of one request.
      filter_values: of all filters together.
      image_pixels: area of an image that is sent.
      waiting: requests that are worked on or whose answer is sent, at the same time; beyond
        them the service says that it is busy.
      waiting_bytes: of the bodies and URLs of all these requests; beyond as well.
      sending_bytes: of all images that clients have not taken yet; beyond as well.
    """

    body_bytes: int = 1 << 20
    url_bytes: int = 1 << 20
    header_seconds: float = 10.0
    body_seconds: float = 10.0
    answer_seconds: float = 60.0
    idle_seconds: float = 75.0
    connections: int = 1024
    queries: int = 1024
    query_chars: int = 8192
    k: int = 1000
    hits: int = 1 << 15
    filter_values: int = 1000
    image_pixels: int = 1 << 25
    waiting: int = 512
    waiting_bytes: int = 1 << 26
    sending_bytes: int = 1 << 28

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f'{field.name} must be positive, got '
                                 f'{getattr(self, field.name)}')


@dataclasses.dataclass(frozen=True)
class WarmUpConfig:
    """What is compiled before the service listens, so that no query waits for it.

    Attributes:
      tokens: of a query, at most; longer ones wait the first time.
      queries: that come together, at most.
      seconds: after which the rest is left to those who ask first; 0 compiles nothing.
    """

    tokens: int = 512
    queries: int = 64
    seconds: float = 300.0

    def __post_init__(self):
        if self.tokens < 1 or self.queries < 1:
            raise ValueError('tokens and queries must be positive, got '
                             f'{self.tokens} and {self.queries}')
        if self.seconds < 0:
            raise ValueError(f'seconds must not be negative, got {self.seconds}')


@dataclasses.dataclass(frozen=True)
class ServiceConfig:
    """Where a search service listens, and how it works.

    Attributes:
      host: address; only this machine reaches the default. There is no authentication.
      port: 0 takes one that is free.
      limits: of requests.
      warm_up: of embedders, before it listens.
      get_results: hits a query of GET /search; the reference gives 10.
      image_root: what stands before a page's file in `image_file` of GET /search, as the
        clients see the files; '' is the folder of the manifest.
      search_threads: searches that wait for the engine at the same time, which it answers
        in batches.
      image_threads: pages that are read and cut at the same time.
      cache_bytes: memory for hits of queries that are asked again; twice that while an index
        is replaced.
      image_cache_bytes: memory for decoded pages; also twice.
      reload_seconds: between looks whether the index on disk was replaced; 0 never looks.
      keep_seconds: that images of pages which were replaced stay on disk, for clients of GET
        /search, which open the files themselves.
      shutdown_seconds: that requests get to end in when the service is stopped.
    """

    host: str = '127.0.0.1'
    port: int = 8002
    limits: ServiceLimits = ServiceLimits()
    warm_up: WarmUpConfig = WarmUpConfig()
    get_results: int = 10
    image_root: str = ''
    search_threads: int = 64
    image_threads: int = 2
    cache_bytes: int = 1 << 26
    image_cache_bytes: int = 1 << 29
    reload_seconds: float = 5.0
    keep_seconds: float = 600.0
    shutdown_seconds: float = 30.0

    def __post_init__(self):
        if not self.host:
            raise ValueError("host must be given; '127.0.0.1' is this machine alone")
        if not 0 <= self.port < 65536:
            raise ValueError(f'port must be in [0, 65535], got {self.port}')
        for name in ('reload_seconds', 'keep_seconds', 'cache_bytes', 'image_cache_bytes'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must not be negative, got {getattr(self, name)}')
        for name in ('get_results', 'search_threads', 'image_threads', 'shutdown_seconds'):
            if getattr(self, name) <= 0:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')


def check_packages() -> None:
    """Raises a `ConfigError` if the extra `serve` is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"config.task: 'serve_index' needs {', '.join(missing)}; "
                          "pip install 'vrag_jax[serve]'")
