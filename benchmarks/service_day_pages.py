"""Documents whose every page tells, in words and in its picture, which version it is of.

A page is a PDF page with a line of words that no other page or version has, and a row of black
and white blocks that spell the numbers of document, page and version.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

PAGES = 3  # Of a document.
_BITS = (10, 2, 12)  # Of the numbers of document, page and version.
_WIDTH, _HEIGHT, _BLOCK = 480, 120, 20  # Points.
_LEFT, _TOP = 0, 100  # Of the row of blocks: its left and upper edge from below.


@dataclasses.dataclass(frozen=True, order=True)
class Spelled:
    """What a page says of itself: numbers of its document, page and version."""

    document: int
    page: int
    version: int

    @property
    def page_id(self) -> str:
        """Its id once it was ingested."""
        return f'{name(self.document)}_{self.page}'

    @property
    def words(self) -> str:
        """Three words of letters that stand nowhere else."""
        digest = hashlib.sha256(repr(self).encode()).digest()
        letters = ''.join(chr(ord('a') + byte % 26) for byte in digest[:30])
        return ' '.join(letters[i:i + 10] for i in (0, 10, 20))


def name(document: int) -> str:
    """Returns the name of a document."""
    return f'doc{document:04d}'


def write_document(folder: Path, document: int, version: int) -> None:
    """Writes a version of a document, replacing the one that is there."""
    contents = []
    for page in range(1, PAGES + 1):
        spelled = Spelled(document, page, version)
        bits = ''.join(f'{value:0{size}b}' for value, size in zip(
            (document, page, version), _BITS, strict=True))
        blocks = ''.join(f'{_LEFT + i * _BLOCK} {_TOP - _BLOCK} {_BLOCK} {_BLOCK} re f\n'
                         for i, bit in enumerate(bits) if bit == '1')
        contents.append(f'0 g\n{blocks}BT /F1 12 Tf 10 40 Td ({spelled.words}) Tj ET')
    partial = folder / f'.{name(document)}.partial'
    partial.write_bytes(_pdf(contents))
    partial.replace(folder / f'{name(document)}.pdf')


def read_picture(image: Image.Image) -> Spelled:
    """Returns what the picture of a page spells, whatever its resolution."""
    scale = image.width / _WIDTH
    row = np.asarray(image.convert('L'))[int((_HEIGHT - _TOP + _BLOCK / 2) * scale)]
    bits = ''.join('1' if row[int((_LEFT + (i + 0.5) * _BLOCK) * scale)] < 128 else '0'
                   for i in range(sum(_BITS)))
    values, at = [], 0
    for size in _BITS:
        values.append(int(bits[at:at + size], 2))
        at += size
    return Spelled(*values)


def _pdf(contents: list[str]) -> bytes:
    """Returns a PDF of pages with these contents, after ISO 32000-1, annex H."""
    kids = ' '.join(f'{4 + 2 * i} 0 R' for i in range(len(contents)))
    objects = ['<< /Type /Catalog /Pages 2 0 R >>',
               f'<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>',
               '<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>']
    for i, content in enumerate(contents):
        objects += [
            f'<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {_WIDTH} {_HEIGHT}] /Contents '
            f'{5 + 2 * i} 0 R /Resources << /Font << /F1 3 0 R >> >> >>',
            f'<< /Length {len(content)} >>\nstream\n{content}\nendstream']
    body, offsets = '%PDF-1.4\n', []
    for number, item in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f'{number} 0 obj\n{item}\nendobj\n'
    table = ''.join(f'{offset:010d} 00000 n \n' for offset in offsets)
    count = len(objects) + 1
    return (f'{body}xref\n0 {count}\n0000000000 65535 f \n{table}trailer\n'
            f'<< /Size {count} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF').encode('ascii')
