"""Page text is the known one, else what the reader sees."""

import pytest
from PIL import Image

from vrag_jax.corpus.ocr import OcrError
from vrag_jax.corpus.text import page_texts, pdf_texts


class NameReader:
    """Reads a page's file name and remembers what it was asked for."""

    def __init__(self):
        self.files = []

    def read(self, file):
        self.files.append(file.name)
        return f'text of {file.name}'


def test_only_pages_without_known_text_are_read(make_store):
    reader, progress = NameReader(), []
    store = make_store(['known', None, ''])
    texts = page_texts(store, reader, lambda done, total: progress.append((done, total)))
    assert texts == ['known', 'text of 2.png', '']
    assert reader.files == ['2.png']
    assert progress == [(1, 3), (2, 3), (3, 3)]


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


def one_page_pdf(text):
    """A PDF written by hand after ISO 32000-1, annex H.3."""
    content = f'BT /F1 24 Tf 72 700 Td ({text}) Tj ET'.encode()
    objects = [
        b'<< /Type /Catalog /Pages 2 0 R >>',
        b'<< /Type /Pages /Kids [3 0 R] /Count 1 >>',
        b'<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R '
        b'/Resources << /Font << /F1 '
        b'<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>',
        b'<< /Length %d >>\nstream\n%s\nendstream' % (len(content), content)]
    body, offsets = b'%PDF-1.4\n', []
    for number, item in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b'%d 0 obj\n%s\nendobj\n' % (number, item)
    table = b''.join(b'%010d 00000 n \n' % offset for offset in offsets)
    return body + (b'xref\n0 5\n0000000000 65535 f \n%strailer\n<< /Size 5 /Root 1 0 R >>\n'
                   b'startxref\n%d\n%%%%EOF' % (table, len(body)))


def test_the_text_layer_of_a_pdf(tmp_path):
    (tmp_path / 'a.pdf').write_bytes(one_page_pdf('Annual report 2020'))
    assert pdf_texts(tmp_path / 'a.pdf') == ['Annual report 2020']
    scans = [Image.new('RGB', (50, 50)) for _ in range(2)]
    scans[0].save(tmp_path / 'scan.pdf', save_all=True, append_images=scans[1:])
    assert pdf_texts(tmp_path / 'scan.pdf') == ['', '']


def test_what_is_no_pdf_is_named(tmp_path):
    (tmp_path / 'b.pdf').write_bytes(b'not a PDF')
    with pytest.raises(ValueError, match=r'b\.pdf: cannot be read as a PDF'):
        pdf_texts(tmp_path / 'b.pdf')
    with pytest.raises(FileNotFoundError, match=r'c\.pdf'):
        pdf_texts(tmp_path / 'c.pdf')
