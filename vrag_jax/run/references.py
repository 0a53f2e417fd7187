"""Reports how many of the questions' reference pages the corpus holds."""

import logging
from collections.abc import Sequence

from vrag_jax.config import ConfigError
from vrag_jax.corpus.pages import PageStore
from vrag_jax.data.records import Question
from vrag_jax.parallel.distributed import is_main

_LOG = logging.getLogger(__name__)

NAMED = 3
"""Pages and documents that a message names."""


def report_references(field: str, source: str, questions: Sequence[Question], store: PageStore
                      ) -> None:
    """Prints the share of questions whose reference pages are there; warns where some are not.

    Questions that name no pages do not count.

    Args:
      field: of `config.data`.
      source: what the questions come from.
      questions: read with the store.
      store: the pages there are.

    Raises:
      ConfigError: if the questions name pages, and none of them is there.
    """
    asked = [q for q in questions if q.page_ids or q.missing_pages]
    whole = sum(not q.missing_pages for q in asked)
    partly = sum(bool(q.missing_pages and q.page_ids) for q in asked)
    missing = list(dict.fromkeys(text for q in asked for text in q.missing_pages))
    where = f'config.data.{field}: {source}'
    if asked and not whole + partly:
        documents = list(dict.fromkeys(page.document for page in store))
        raise ConfigError(
            f'{where}: none of the reference pages of {len(asked)} questions is among the '
            f'{len(store)} pages of config.data.manifest: there is no {_some(missing)}; there are '
            f'the documents {_some(list(map(repr, documents)))}')
    if not is_main():
        return
    if not asked:
        print(f'{field}: no question names its pages: the retrieval reward of all is 0')
        return
    share = 100 * whole / len(asked)
    # Rounding must not turn a question that has no pages into none.
    text = '100' if whole == len(asked) else f'{min(share, 99.9):.1f}'
    some = f' ({partly:,} more: some of them)' if partly else ''
    print(f'{field}: the reference pages of {whole:,} of {len(asked):,} questions are there, '
          f'{text} %{some}', flush=True)
    if missing:
        _LOG.warning('%s: %d reference pages are not among the pages, so retrieving them cannot be '
                     'rewarded: %s', where, len(missing), _some(missing))
    boxes = list(dict.fromkeys(
        e.page_id for q in questions for e in q.evidence if e.page_id not in store))
    if boxes:
        _LOG.warning('%s: %d pages of evidence boxes are not among the pages: %s', where,
                     len(boxes), _some(boxes))


def _some(texts: Sequence[str]) -> str:
    more = f' and {len(texts) - NAMED} more' if len(texts) > NAMED else ''
    return ', '.join(texts[:NAMED]) + more
