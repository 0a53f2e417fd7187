"""Search by a service instead of in this process: the client of `serving.search_service`."""

import dataclasses
import json
import time
from collections.abc import Container, Iterator, Sequence
from typing import Any

import httpx

from vrag_jax.retrieval.filters import Filters
from vrag_jax.retrieval.hits import Hit
from vrag_jax.retrieval.page_search import filters_json

_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}


class SearchServiceError(RuntimeError):
    """A service that cannot be used; the message names its URL and what is wrong."""


@dataclasses.dataclass(frozen=True)
class RemoteSearchConfig:
    """How a search service is asked.

    Attributes:
      timeout_s: seconds to wait for an answer.
      connect_timeout_s: seconds to wait for a connection.
      attempts: most times that a request is sent.
      backoff_s: seconds before the second attempt; doubles with each further one.
      max_backoff_s: most seconds between two attempts.
      connections: that are open at the same time, at most.
      batch: queries in one request, at most.
      hits: queries times k of one request, at most; no more than the service allows
        (`serving.limits.hits`), which `check` asks it.
      body_bytes: size of a request's body, unless a single query makes it longer; no more
        than the service takes (`serving.limits.body_bytes`).
    """

    timeout_s: float = 60.0
    connect_timeout_s: float = 5.0
    attempts: int = 5
    backoff_s: float = 0.5
    max_backoff_s: float = 8.0
    connections: int = 16
    batch: int = 256
    hits: int = 1 << 15
    body_bytes: int = 1 << 20

    def __post_init__(self):
        for name in ('timeout_s', 'connect_timeout_s', 'attempts', 'connections', 'batch', 'hits',
                     'body_bytes'):
            if getattr(self, name) <= 0:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if not 0 <= self.backoff_s <= self.max_backoff_s:
            raise ValueError(f'need 0 <= backoff_s <= max_backoff_s, got {self.backoff_s} and '
                             f'{self.max_backoff_s}')


def check_url(url: str) -> None:
    """Raises a ValueError if this is no URL of a server."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f'url: {error}, got {url!r}') from error
    if parsed.scheme not in ('http', 'https') or not parsed.host:
        raise ValueError(f'url must be like http://HOST:PORT, got {url!r}')


class RemoteSearch:
    """Searches as a `SearchEngine` does, by asking a service; safe to use from many threads.

    What fails in passing (no connection, a busy or restarting service) is tried again with
    growing pauses; whatever remains is an error, for a run must not go on with pages that
    nobody searched for.

    Args:
      url: of the service, e.g. 'http://127.0.0.1:8002'.
      known: ids of the pages that the caller has; a service that finds others serves
        something else.
      config: how it is asked.

    Raises:
      ValueError: if the URL is none.
    """

    def __init__(self, url: str, known: Container[str],
                 config: RemoteSearchConfig = RemoteSearchConfig()):  # noqa: B008 (immutable)
        check_url(url)
        self.config = config
        self.url = url.rstrip('/')
        self._known = known
        self._most = {'queries': config.batch, 'hits': config.hits,
                      'body_bytes': config.body_bytes}
        self._client = httpx.Client(
            timeout=httpx.Timeout(config.timeout_s, connect=config.connect_timeout_s),
            limits=httpx.Limits(max_connections=config.connections,
                                max_keepalive_connections=config.connections))

    def close(self) -> None:
        """Ends the connections."""
        self._client.close()

    def check(self) -> int:
        """Asks whether the service works, and returns how many pages it has.

        Requests are made no larger than it allows from then on.

        Raises:
          SearchServiceError: if it does not answer as a search service.
        """
        answer = self._request('GET', '/healthz')
        try:
            pages, limits = int(answer['pages']), dict(answer.get('limits', {}))
            self._most = {name: min(most, int(limits.get(name, most)))
                          for name, most in self._most.items()}
            return pages
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._error(f'is no search service: /healthz answered {answer!r}') from error

    def search(self, queries: Sequence[str], k: int, filters: Filters | None = None
               ) -> list[list[Hit]]:
        """Finds the best pages of each query, see `SearchEngine.search`.

        Raises:
          ValueError: if k < 1.
          SearchServiceError: if the service cannot be reached after all attempts, refuses
            the request, or finds a page that the caller does not have.
        """
        if k < 1:
            raise ValueError(f'k must be positive, got {k}')
        rest: dict[str, Any] = {'k': k}
        if filters:
            rest['filters'] = filters_json(filters)
        results: list[list[Hit]] = []
        for batch in self._batches(queries, k, len(_json({'queries': [], **rest}))):
            answer = self._request('POST', '/search', {'queries': batch, **rest})
            results += self._hits(answer, len(batch))
        return results

    def _batches(self, queries: Sequence[str], k: int, rest: int) -> Iterator[list[str]]:
        """Cuts queries into requests, of which all but the queries takes `rest` bytes."""
        batch: list[str] = []
        most = max(1, min(self._most['queries'], self._most['hits'] // k))
        size = rest
        for query in queries:
            more = len(_json(query)) + 1  # And a comma.
            if batch and (len(batch) == most or size + more > self._most['body_bytes']):
                yield batch
                batch, size = [], rest
            batch.append(query)
            size += more
        if batch:
            yield batch

    def _hits(self, answer: Any, count: int) -> list[list[Hit]]:
        try:
            results = [[Hit(hit['page_id'], float(hit['score'])) for hit in hits]
                       for hits in answer['results']]
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(f'gave no search results: {error!r}') from error
        if len(results) != count:
            raise self._error(f'gave {len(results)} results for {count} queries')
        for hits in results:
            for hit in hits:
                if hit.page_id not in self._known:
                    raise self._error(
                        f'found page {hit.page_id!r}, which is not among the pages of this run: '
                        'both must have the same pages (config.data)')
        return results

    def _request(self, method: str, path: str, body: Any = None) -> Any:
        """Sends a request until there is an answer or no attempt is left."""
        data = None if body is None else _json(body)
        headers = {} if body is None else {'Content-Type': 'application/json'}
        reason = ''
        for attempt in range(self.config.attempts):
            if attempt:
                time.sleep(min(self.config.backoff_s * 2.0 ** (attempt - 1),
                               self.config.max_backoff_s))
            try:
                response = self._client.request(
                    method, self.url + path, content=data, headers=headers)
            except httpx.TransportError as error:
                reason = f'{type(error).__name__}: {error}'
                continue
            if response.status_code == 200:
                try:
                    return response.json()
                except ValueError as error:
                    raise self._error(f'{path} gave no JSON: {response.text[:200]!r}') from error
            reason = f'{path} answered {response.status_code}: {_explanation(response)}'
            if response.status_code not in _TRANSIENT_STATUS:
                raise self._error(reason)
        raise self._error(f'cannot be used after {self.config.attempts} attempts: {reason}')

    def _error(self, reason: str) -> SearchServiceError:
        return SearchServiceError(f'search service {self.url}: {reason}')


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(',', ':'), allow_nan=False).encode()


def _explanation(response: httpx.Response) -> str:
    """Returns what a service says is wrong, with the field it names."""
    try:
        answer = response.json()
        return f'{answer["field"]}: {answer["error"]}' if answer['field'] else answer['error']
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
