"""Page text is the known one, else what the reader sees."""

import pytest

from vrag_jax.corpus.ocr import OcrError
from vrag_jax.corpus.page_texts import page_texts


class NameReader:
    """Reads a page's file name and remembers what it was asked for."""

    def __init__(self):
        self.files = []

    def read(self, file):
        self.files.append(file.name)
        return f'text of {file.name}'


def test_only_pages_without_known_text_are_read(make_store, capsys):
    reader = NameReader()
    store = make_store(['known', None, ''])
    assert page_texts(store, reader) == ['known', 'text of 2.png', '']
    assert reader.files == ['2.png']
    assert 'reading pages: 100%' in capsys.readouterr().err


def test_a_page_over_which_the_ocr_fails_stays_without_text(make_store, caplog):
    class FailingReader(NameReader):
        def read(self, file):
            if file.name == '1.png':
                raise OcrError('OCR fails: too narrow')
            return super().read(file)

    assert page_texts(make_store([None, None]), FailingReader()) == ['', 'text of 2.png']
    assert "page 'p1' stays without text: OCR fails: too narrow" in caplog.text


def test_without_a_reader_an_unknown_text_is_an_error(make_store):
    assert page_texts(make_store(['a', 'b'])) == ['a', 'b']
    with pytest.raises(ValueError, match="page 'p2' has no text"):
        page_texts(make_store(['a', None]))
