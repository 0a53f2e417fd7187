"""The search service: an HTTP application over pages and their index.

`GET /search?queries=a&queries=b` answers as the reference's search engine does, so that its
clients work unchanged: a list of hits a query, each `{"idx": 0, "image_file": "..."}`.
`POST /search` takes batches, `k` and filters; `GET /pages/{id}` gives a page's image or a
region of it. Errors are JSON: `{"error": "...", "field": "..."}`.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

import pydantic
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from vrag_jax.retrieval.filters import UnknownFieldError
from vrag_jax.serving.config import ServiceConfig, ServiceLimits
from vrag_jax.serving.errors import RequestError
from vrag_jax.serving.live import LiveIndex, Version
from vrag_jax.serving.metrics import MetricsMiddleware, ServiceMetrics
from vrag_jax.serving.page_images import ImageRequest, render

_LOG = logging.getLogger(__name__)

Scalar = pydantic.StrictStr | pydantic.StrictBool | pydantic.StrictInt | pydantic.StrictFloat
T = TypeVar('T')


class SearchRequest(pydantic.BaseModel):
    """Body of `POST /search`.

    Attributes:
      queries: texts.
      k: hits a query, at most.
      filters: values of `page_id`, `document`, `page` or a field of the pages' own; a page
        must match every field, with any of its values.
    """

    model_config = pydantic.ConfigDict(extra='forbid')

    queries: list[pydantic.StrictStr]
    k: pydantic.StrictInt = pydantic.Field(10, ge=1)
    filters: dict[str, Scalar | list[Scalar]] | None = None


def create_app(live: LiveIndex, config: ServiceConfig) -> FastAPI:
    """Makes the application.

    Args:
      live: pages and index; looked at for a newer version every `reload_seconds`.
      config: limits and threads.

    Returns:
      An ASGI application that any server can run.
    """
    service = _Service(live, config)
    app = FastAPI(title='vrag_jax search', lifespan=service.lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(MetricsMiddleware, metrics=service.metrics)
    app.add_exception_handler(RequestError, _answer_request_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_failure)
    body = {'requestBody': {'required': True, 'content': {'application/json': {
        'schema': SearchRequest.model_json_schema()}}}}
    app.get('/search', summary="Search as the reference's service does")(service.get_search)
    app.post('/search', summary='Search in batches, with filters', openapi_extra=body)(
        service.post_search)
    app.get('/pages/{page_id:path}', summary='Image of a page or of a region')(service.get_page)
    app.get('/healthz', summary='Whether the service works')(service.get_health)
    app.get('/metrics', summary='Prometheus metrics')(service.get_metrics)
    return app


class _Service:
    """The routes, and the threads that do their work: none of it is done in the event loop."""

    def __init__(self, live: LiveIndex, config: ServiceConfig):
        self._live = live
        self._config = config
        self._limits = config.limits
        self.metrics = ServiceMetrics(live)
        self._waiting = 0
        self._searches = ThreadPoolExecutor(config.search_threads, 'search')
        self._images = ThreadPoolExecutor(config.image_threads, 'image')

    @contextlib.asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Looks for newer versions while the application runs; ends the threads after it."""
        watcher = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher
            self._searches.shutdown()
            self._images.shutdown()

    async def _watch(self) -> None:
        while self._config.reload_seconds:
            await asyncio.sleep(self._config.reload_seconds)
            try:
                # Not in the pools: opening an index must not stand in the way of requests.
                await asyncio.to_thread(self._live.refresh)
            except Exception:
                _LOG.exception('looking for a new index')

    async def get_search(
            self, request: Request,
            queries: Annotated[list[str], Query(description='texts; any number of times')],
    ) -> Response:
        if len(request.scope['query_string']) > self._limits.url_bytes:
            raise RequestError(414, 'queries', f'the URL is longer than {self._limits.url_bytes} '
                                               'bytes: use POST')
        check_queries(queries, self._limits)
        return await self._run(self._searches, lambda: self._search_as_reference(queries))

    async def post_search(self, request: Request) -> Response:
        body = await self._read_body(request)
        return await self._run(self._searches, lambda: self._search(body))

    async def get_page(
            self, page_id: str, request: Request,
            region: Annotated[str | None, Query(
                description='x1,y1,x2,y2 in pixels of the page, or of `frame`')] = None,
            frame: Annotated[str | None, Query(
                description='WIDTHxHEIGHT of the page when the region was chosen')] = None,
            min_pixels: Annotated[int | None, Query(description='least area of the image')] = None,
            max_pixels: Annotated[int | None, Query(description='greatest area')] = None,
            format: Annotated[str, Query(description='png or jpeg')] = 'png',
    ) -> Response:
        most = self._limits.image_pixels
        known = request.headers.get('if-none-match', '')

        def work() -> Response:
            wanted = ImageRequest.parse(region, frame, min_pixels, max_pixels, format, most)
            version = self._live.current
            try:
                return show(version, wanted)
            except FileNotFoundError:
                # The file went with its version, which was replaced since the last look. Who
                # else looks, such as the watcher, may be the one that opens the new one.
                self._live.refresh()
                if self._live.current is version:
                    raise
                return show(self._live.current, wanted)

        def show(version: Version, wanted: ImageRequest) -> Response:
            tag = f'"{version.name}"'  # A page's images change with the version alone.
            if tag in known and page_id in version.store:
                return Response(status_code=304, headers={'ETag': tag})
            image = render(version.store, page_id, wanted, most)
            return Response(image.data, media_type=image.media_type, headers={
                'ETag': tag,
                'X-Page-Size': _pair(image.frame.page_size),
                'X-Page-Region': ','.join(f'{x:g}' for x in image.frame.region),
                'X-Image-Size': _pair(image.frame.encoder_size)})

        return await self._run(self._images, work)

    async def get_health(self) -> Response:
        version = self._live.current
        return JSONResponse({'status': 'ok', 'pages': len(version.store),
                             'version': version.name})

    async def get_metrics(self) -> Response:
        return Response(self.metrics.text(), media_type='text/plain; version=0.0.4')

    def _search(self, body: bytes) -> Response:
        request = parse_search(body, self._limits)
        version = self._live.current
        self.metrics.queries.observe(len(request.queries))
        try:
            results = version.engine.search(request.queries, request.k, request.filters)
        except UnknownFieldError as error:
            raise RequestError(422, 'filters', str(error)) from None
        heads = version.json_heads
        lists = (','.join([f'{heads[page_id]}{score!r}}}' for page_id, score in hits])
                 for hits in results)
        text = f'{{"version":"{version.name}","results":[{",".join(f"[{x}]" for x in lists)}]}}'
        return Response(text.encode(), media_type='application/json')

    def _search_as_reference(self, queries: list[str]) -> Response:
        version, count = self._live.current, self._config.get_results
        self.metrics.queries.observe(len(queries))
        found = version.engine.search(queries, count)
        return _json([[
            {'idx': i, 'image_file': self._image_file(version, page_id)}
            for i, page_id in enumerate(filled([hit.page_id for hit in hits], version, count))]
            for hits in found])

    def _image_file(self, version: Version, page_id: str) -> str:
        root = self._config.image_root or str(version.store.folder.resolve())
        return f'{root.rstrip("/")}/{version.store[page_id].file}'

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """Runs work in a thread, unless too much is waiting already."""
        if self._waiting >= self._limits.waiting:
            raise RequestError(503, '', f'{self._waiting} requests are waiting already',
                               {'Retry-After': '1'})
        self._waiting += 1
        self.metrics.waiting.set(self._waiting)
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        finally:
            self._waiting -= 1
            self.metrics.waiting.set(self._waiting)

    async def _read_body(self, request: Request) -> bytes:
        """Reads a body, never more of it than is allowed."""
        most, parts, size = self._limits.body_bytes, [], 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise RequestError(413, 'body', f'is longer than {most} bytes',
                                           {'Connection': 'close'})
                    parts.append(part)
        except ClientDisconnect:
            raise RequestError(400, 'body', 'was cut off') from None
        except TimeoutError:
            raise RequestError(408, 'body', 'was not there after '
                               f'{self._limits.body_seconds:g} seconds',
                               {'Connection': 'close'}) from None
        return b''.join(parts)


def parse_search(body: bytes, limits: ServiceLimits) -> SearchRequest:
    """Reads the body of a search.

    Raises:
      RequestError: naming the field.
    """
    try:
        request = SearchRequest.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise _first_fault(error.errors(include_url=False)) from None
    check_queries(request.queries, limits)
    if request.k > limits.k:
        raise RequestError(422, 'k', f'must be in [1, {limits.k}], got {request.k}')
    values = sum(len(v) if isinstance(v, list) else 1 for v in (request.filters or {}).values())
    if values > limits.filter_values:
        raise RequestError(422, 'filters', f'hold {values} values; {limits.filter_values} are '
                                           'allowed')
    return request


def check_queries(queries: list[str], limits: ServiceLimits) -> None:
    """Raises a `RequestError` if there are no queries, too many, or one is too long."""
    if not queries:
        raise RequestError(422, 'queries', 'there is none')
    if len(queries) > limits.queries:
        raise RequestError(422, 'queries', f'{len(queries)} are too many; {limits.queries} are '
                                           'allowed')
    for i, query in enumerate(queries):
        if len(query) > limits.query_chars:
            raise RequestError(422, f'queries.{i}', f'has {len(query)} characters; '
                                                    f'{limits.query_chars} are allowed')


def filled(found: list[str], version: Version, count: int) -> list[str]:
    """Returns `count` pages, or all there are: those found, then others in their order.

    The reference scores every page and always gives so many; its clients take the first
    without looking whether there is one.
    """
    taken = set(found)
    missing = min(count, len(version.store)) - len(found)
    others = (page_id for page_id in version.store.ids if page_id not in taken)
    return found + [page_id for page_id, _ in zip(others, range(missing), strict=False)]


def _first_fault(errors: Any) -> RequestError:
    """Names the first field that pydantic or FastAPI complains of."""
    first = errors[0]
    place = [str(part) for part in first['loc'] if part not in ('query', 'path', 'body')]
    if first['type'] == 'json_invalid':
        return RequestError(400, 'body', first['msg'])
    return RequestError(422, '.'.join(place) or 'body', first['msg'])


def _json(value: Any) -> Response:
    data = json.dumps(value, ensure_ascii=False, separators=(',', ':')).encode()
    return Response(data, media_type='application/json')


def _pair(size: tuple[int, int]) -> str:
    return f'{size[0]}x{size[1]}'


def _error(status: int, field: str, message: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({'error': message, 'field': field}, status, headers)


async def _answer_request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error(error.status, error.field, error.message, error.headers)


async def _answer_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fault = _first_fault(error.errors())
    return _error(fault.status, fault.field, fault.message)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, 'path' if error.status_code == 404 else 'method',
                  f'{error.detail}: {request.method} {request.url.path}', error.headers)


async def _answer_failure(_: Request, error: Exception) -> Response:
    del error  # Logged by the server; clients are not told of the inside.
    return _error(500, '', 'the service failed; its log says why')
