"""What a search request holds, and what is wrong with it."""

from typing import Any

import pydantic

from vrag_jax.serving.errors import RequestError
from vrag_jax.serving.service_config import ServiceLimits

Scalar = pydantic.StrictStr | pydantic.StrictBool | pydantic.StrictInt | pydantic.StrictFloat


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


def parse_search(body: bytes, limits: ServiceLimits) -> SearchRequest:
    """Reads the body of a search.

    Raises:
      RequestError: naming the field.
    """
    try:
        request = SearchRequest.model_validate_json(body)
    except pydantic.ValidationError as error:
        raise first_fault(error.errors(include_url=False)) from None
    check_queries(request.queries, limits)
    if request.k > limits.k:
        raise RequestError(422, 'k', f'must be in [1, {limits.k}], got {request.k}')
    check_hits(len(request.queries), request.k, 'k', limits)
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


def check_hits(queries: int, k: int, field: str, limits: ServiceLimits) -> None:
    """Raises a `RequestError` of `field` if so many hits are too many for one request."""
    if queries * k > limits.hits:
        raise RequestError(422, field, f'{queries} queries x {k} hits are {queries * k}; '
                           f'{limits.hits} are allowed (serving.limits.hits): ask for less, or in '
                           'several requests')


def first_fault(errors: Any) -> RequestError:
    """Names the first field that pydantic or FastAPI complains of."""
    first = errors[0]
    place = [str(part) for part in first['loc'] if part not in ('query', 'path', 'body')]
    if first['type'] == 'json_invalid':
        return RequestError(400, 'body', first['msg'])
    return RequestError(422, '.'.join(place) or 'body', first['msg'])
