"""The search service: an HTTP application over pages and their index.

`GET /search?queries=a&queries=b` answers as the reference's search engine does, so that its
clients work unchanged: a list of hits a query, each `{"idx": 0, "image_file": "..."}`.
`POST /search` takes batches, `k` and filters; `GET /pages/{id}` gives a page's image or a
region of it. Errors are JSON: `{"error": "...", "field": "..."}`.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from vrag_jax.retrieval.filters import UnknownFieldError
from vrag_jax.serving.answers import (
    Answer,
    AnswerResponse,
    gathered,
    hits_json,
    reference_json,
    slices,
)
from vrag_jax.serving.errors import RequestError
from vrag_jax.serving.live import LiveIndex, Version
from vrag_jax.serving.load import Load, Share
from vrag_jax.serving.page_images import ImageRequest, render
from vrag_jax.serving.requests import (
    SearchRequest,
    check_hits,
    check_queries,
    first_fault,
    parse_search,
)
from vrag_jax.serving.service_config import ServiceConfig
from vrag_jax.serving.service_metrics import MetricsMiddleware, ServiceMetrics

_LOG = logging.getLogger(__name__)
_SOON_SECONDS = 0.5


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
        self._load = Load(self._limits, self.metrics.waiting.set)
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
            # Half of a version is there: the other half comes soon.
            seconds = self._config.reload_seconds
            await asyncio.sleep(min(_SOON_SECONDS, seconds) if self._live.behind else seconds)
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
        check_hits(len(queries), self._config.get_results, 'queries', self._limits)
        with self._share() as share:
            share.read(len(request.scope['query_string']))
            return await self._run(
                self._searches, lambda: self._search_as_reference(queries), share)

    async def post_search(self, request: Request) -> Response:
        with self._share() as share:
            body = await self._read_body(request, share)
            return await self._run(self._searches, lambda: self._search(body), share)

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

        def work() -> Answer:
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

        def show(version: Version, wanted: ImageRequest) -> Answer:
            tag = f'"{version.name}"'  # A page's images change with the version alone.
            if tag in known and page_id in version.store:
                return Answer((), headers={'ETag': tag}, status=304)
            image = render(version.store, page_id, wanted, most)
            return Answer(slices(image.data), image.media_type, {
                'ETag': tag,
                'X-Page-Size': _pair(image.frame.page_size),
                'X-Page-Region': ','.join(f'{x:g}' for x in image.frame.region),
                'X-Image-Size': _pair(image.frame.encoder_size)}, size=len(image.data))

        with self._share() as share:
            return await self._run(self._images, work, share)

    async def get_health(self) -> Response:
        version = self._live.current
        limits = {name: getattr(self._limits, name) for name in (
            'queries', 'query_chars', 'k', 'hits', 'body_bytes')}
        return JSONResponse({'status': 'ok', 'pages': len(version.store),
                             'version': version.name, 'limits': limits})

    async def get_metrics(self) -> Response:
        return Response(self.metrics.text(), media_type='text/plain; version=0.0.4')

    def _search(self, body: bytes) -> Answer:
        request = parse_search(body, self._limits)
        version = self._live.current
        self.metrics.queries.observe(len(request.queries))
        try:
            results = version.engine.find(request.queries, request.k, request.filters)
        except UnknownFieldError as error:
            raise RequestError(422, 'filters', str(error)) from None
        return Answer(gathered(hits_json(version, results)))

    def _search_as_reference(self, queries: list[str]) -> Answer:
        version, count = self._live.current, self._config.get_results
        self.metrics.queries.observe(len(queries))
        results = version.engine.find(queries, count)
        root = self._config.image_root or str(version.store.folder.resolve())
        return Answer(gathered(reference_json(version, results, count, root.rstrip('/'))))

    @contextlib.contextmanager
    def _share(self) -> Iterator[Share]:
        """What a request holds: until its answer was sent, or there is none."""
        share = Share(self._load)
        try:
            yield share
        except BaseException:
            share.leave()
            raise

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], Answer], share: Share
                   ) -> Response:
        """Runs work in a thread, unless too much is waiting already."""
        share.work()
        answer = await asyncio.get_running_loop().run_in_executor(pool, work)
        share.send(answer.size)
        return AnswerResponse(answer, self._searches, share.leave)

    async def _read_body(self, request: Request, share: Share) -> bytes:
        """Reads a body, never more of it than is allowed."""
        most, parts, size = self._limits.body_bytes, [], 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise RequestError(413, 'body', f'is longer than {most} bytes',
                                           {'Connection': 'close'})
                    share.read(len(part))
                    parts.append(part)
        except ClientDisconnect:
            raise RequestError(400, 'body', 'was cut off') from None
        except TimeoutError:
            raise RequestError(408, 'body', 'was not there after '
                               f'{self._limits.body_seconds:g} seconds',
                               {'Connection': 'close'}) from None
        return b''.join(parts)


def _pair(size: tuple[int, int]) -> str:
    return f'{size[0]}x{size[1]}'


def _error(status: int, field: str, message: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({'error': message, 'field': field}, status, headers)


async def _answer_request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _error(error.status, error.field, error.message, error.headers)


async def _answer_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fault = first_fault(error.errors())
    return _error(fault.status, fault.field, fault.message)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, 'path' if error.status_code == 404 else 'method',
                  f'{error.detail}: {request.method} {request.url.path}', error.headers)


async def _answer_failure(_: Request, error: Exception) -> Response:
    del error  # Logged by the server; clients are not told of the inside.
    return _error(500, '', 'the service failed; its log says why')
