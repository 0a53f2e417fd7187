"""Text of pages: known, or read by OCR."""

import logging

from tqdm import tqdm

from vrag_jax.corpus.ocr import OcrError, OcrReader
from vrag_jax.corpus.pages import PageStore

_LOG = logging.getLogger(__name__)


def page_texts(store: PageStore, reader: OcrReader | None = None) -> list[str]:
    """Returns the text of every page, in the store's order.

    Args:
      store: the pages.
      reader: reads the images of pages whose text is not known; a page over which it fails
        has the text '', and a warning names it.

    Raises:
      ValueError: if a page's text is not known and there is no reader.
      ImportError: if OCR is needed and not installed.
    """
    texts = []
    known = all(page.text is not None for page in store)
    for page in tqdm(store, 'reading pages', unit='page', disable=known or reader is None):
        text = page.text
        if text is None:
            if reader is None:
                raise ValueError(f'page {page.page_id!r} has no text in its manifest; OCR reads '
                                 'it with config.retrieval.ocr=True')
            try:
                text = reader.read(store.path(page.page_id))
            except OcrError as error:
                _LOG.warning('page %r stays without text: %s', page.page_id, error)
                text = ''
        texts.append(text)
    return texts
