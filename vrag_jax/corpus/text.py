"""Text of pages: known, from a PDF's text layer, or read by OCR."""

import logging
from collections.abc import Callable
from pathlib import Path

from vrag_jax.corpus.ocr import OcrError, OcrReader
from vrag_jax.corpus.pages import PageStore

_LOG = logging.getLogger(__name__)


def page_texts(store: PageStore, reader: OcrReader | None = None,
               progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Returns the text of every page, in the store's order.

    Args:
      store: the pages.
      reader: reads the images of pages whose text is not known; a page over which it fails
        has the text '', and a warning names it.
      progress: is called with (pages done, pages) after each page.

    Raises:
      ValueError: if a page's text is not known and there is no reader.
      ImportError: if OCR is needed and not installed.
    """
    texts = []
    for page in store:
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
        if progress is not None:
            progress(len(texts), len(store))
    return texts


def pdf_texts(file: Path) -> list[str]:
    """Returns the text layer of each page of a PDF, '' where a page has none.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no PDF that can be read.
    """
    import pypdfium2

    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f'{file}: no such PDF')
    try:
        document = pypdfium2.PdfDocument(file)
    except pypdfium2.PdfiumError as error:
        raise ValueError(f'{file}: cannot be read as a PDF: {error}') from error
    with document:
        return [page.get_textpage().get_text_range().strip() for page in document]
