"""PDFs written by hand, and what a folder holds as one digest."""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

PdfMaker = Callable[..., Path]


def pdf_bytes(texts: Sequence[str], size=(200, 100), page_entries='', trailer='') -> bytes:
    """A PDF after ISO 32000-1, annex H: a page a text, in Helvetica, at most 20, at (20, 40)."""
    kids = ' '.join(f'{3 + 2 * i} 0 R' for i in range(len(texts)))
    objects = [b'<< /Type /Catalog /Pages 2 0 R >>',
               f'<< /Type /Pages /Kids [{kids}] /Count {len(texts)} >>'.encode()]
    for i, text in enumerate(texts):
        # As large as fits on the page.
        points = min(20.0, 1.6 * (size[0] - 30) / max(len(text), 1))
        content = f'BT /F1 {points:g} Tf 20 40 Td ({text}) Tj ET'.encode() if text else b''
        objects += [
            f'<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {size[0]} {size[1]}] {page_entries} '
            f'/Contents {4 + 2 * i} 0 R /Resources << /Font << /F1 << /Type /Font '
            f'/Subtype /Type1 /BaseFont /Helvetica >> >> >> >>'.encode(),
            b'<< /Length %d >>\nstream\n%s\nendstream' % (len(content), content)]
    return assemble(objects, trailer)


def assemble(objects: Sequence[bytes], trailer='') -> bytes:
    """A PDF of objects 1, 2, ...; the first is the catalogue."""
    body, offsets = b'%PDF-1.4\n', []
    for number, item in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b'%d 0 obj\n%s\nendobj\n' % (number, item)
    table = b''.join(b'%010d 00000 n \n' % offset for offset in offsets)
    count = len(objects) + 1
    return body + (b'xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R %s >>\n'
                   b'startxref\n%d\n%%%%EOF' % (count, table, count, trailer.encode(), len(body)))


def stream(content: str | bytes, entries='') -> bytes:
    """A stream object."""
    if isinstance(content, str):
        content = content.encode('latin-1')
    return b'<< %s /Length %d >>\nstream\n%s\nendstream' % (
        entries.encode(), len(content), content)


def page_bytes(content: str | Sequence[str], page='', catalog='', resources='', more=(),
               size=(400, 300), fonts='') -> bytes:
    """A PDF with Helvetica (/F1) of one page, or of one for each content.

    Args:
      content: operators of each page.
      page: entries of all pages.
      catalog: entries of the catalogue.
      resources: entries of the pages' resources beside fonts.
      more: objects 4, 5, ...
      size: of the MediaBox.
      fonts: entries of the fonts beside /F1.
    """
    contents = [content] if isinstance(content, str) else list(content)
    first = 4 + len(more)
    kids = ' '.join(f'{first + 2 * i} 0 R' for i in range(len(contents)))
    media = '' if '/MediaBox' in page else f'/MediaBox [0 0 {size[0]} {size[1]}]'
    objects = [f'<< /Type /Catalog /Pages 2 0 R {catalog} >>',
               f'<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>',
               '<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>', *more]
    for i, operators in enumerate(contents):
        objects += [f'<< /Type /Page /Parent 2 0 R {media} {page} '
                    f'/Contents {first + 2 * i + 1} 0 R '
                    f'/Resources << /Font << /F1 3 0 R {fonts} >> {resources} >> >>',
                    stream(operators)]
    return assemble([x if isinstance(x, bytes) else x.encode('latin-1') for x in objects])


@pytest.fixture
def page_pdf(tmp_path: Path) -> Callable[..., Path]:
    """Writes a PDF of `page_bytes`."""
    made = itertools.count()

    def make(content: str | Sequence[str], **options) -> Path:
        file = tmp_path / f'page{next(made)}.pdf'
        file.write_bytes(page_bytes(content, **options))
        return file

    return make


@pytest.fixture
def make_pdf(tmp_path: Path) -> PdfMaker:
    """Writes a PDF of `pdf_bytes` under a path relative to `tmp_path / 'in'`."""

    def make(name: str, *texts: str, **options) -> Path:
        file = tmp_path / 'in' / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pdf_bytes(texts, **options))
        return file

    return make


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by its path in it."""
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture(name='tree')
def tree_fixture() -> Callable[[Path], dict[str, str]]:
    return tree
