"""Fonts that neither a PDF nor the machine has are reported, with the package to install."""

import os
from pathlib import Path

import pytest

from tests.corpus.pdf.test_lines import CJK, code
from vrag_jax.corpus.ingestion import ingest as ingestion
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.pages import PageStore

# Every Python process that finds it starts a PDFium that knows no folder of fonts.
WITHOUT_FONTS = """
import ctypes

from pypdfium2 import raw

raw.FPDF_DestroyLibrary()
folder = ctypes.create_string_buffer(b'/nonexistent')
folders = (ctypes.POINTER(ctypes.c_char) * 2)(
    ctypes.cast(folder, ctypes.POINTER(ctypes.c_char)), None)
raw.FPDF_InitLibraryWithConfig(raw.FPDF_LIBRARY_CONFIG(version=2, m_pUserFontPaths=folders))
"""


@pytest.fixture
def without_fonts(tmp_path, monkeypatch):
    folder = tmp_path / 'site'
    folder.mkdir()
    (folder / 'sitecustomize.py').write_text(WITHOUT_FONTS)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(
        filter(None, (str(folder), os.environ.get('PYTHONPATH', '')))))


def ingest(source: Path, pages: Path):
    report = ingestion.ingest([source], pages, IngestConfig(workers=1), progress=False)
    return report, list(PageStore.open(pages / 'pages.jsonl'))


def test_a_missing_font_is_reported_and_its_text_kept(page_pdf, tmp_path, without_fonts):
    title = code('年次報告書', 'F2')
    single = ''.join(f'BT /F2 16 Tf {20 + 20 * i} 250 Td {code(c, "F2")} Tj ET '
                     for i, c in enumerate('年次報告書'))
    file = page_pdf(['BT /F1 12 Tf 20 250 Td (Plain words) Tj /F1 9 Tf ( ) Tj ET',
                     f'BT /F1 12 Tf 20 250 Td (Title ) Tj /F2 16 Tf {title} Tj ET', single],
                    fonts=CJK.format('H'))
    report, pages = ingest(file, tmp_path / 'pages')
    # Of characters placed one by one PDFium does not even know the text then.
    assert [page.text for page in pages][:2] == ['Plain words', 'Title 年次報告書']
    assert [where for where, _ in report.failed] == [f'{file.name}, page {n}' for n in (2, 3)]
    for _, reason in report.failed:
        assert reason == ('characters are missing in its image: neither the file nor this machine '
                          'has the font HeiseiMin-W3; install the package fonts-noto-cjk '
                          '(the page is kept)')
    assert 'fonts-noto-cjk' in str(report)
    assert 'fonts-noto-cjk' in (tmp_path / 'pages' / 'failures.jsonl').read_text('utf-8')
    # Nothing is read again, and it is still said.
    again, _ = ingest(file, tmp_path / 'pages')
    assert again.pages_read == 0 and again.failed == report.failed


def test_what_is_hidden_lacks_no_font(page_pdf, tmp_path, without_fonts):
    text = f'/F2 16 Tf {code("年次報告書", "F2")} Tj'
    file = page_pdf(f'BT /F1 12 Tf 20 250 Td (Plain words) Tj 3 Tr 0 -50 Td {text} ET',
                    fonts=CJK.format('H'))
    report, [page] = ingest(file, tmp_path / 'pages')
    assert not report.failed and page.text == 'Plain words'


def test_the_case_of_placed_characters(shared_dir, tmp_path, without_fonts):
    file = shared_dir / 'cases' / 'tracking' / 'cjk_spaced.pdf'
    if not file.is_file():
        pytest.skip('no cases there')
    report, [page] = ingest(file, tmp_path / 'pages')
    assert '東京都交通局年次報告書' in page.text
    [(where, reason)] = report.failed
    assert where == 'cjk_spaced.pdf, page 1' and 'fonts-noto-cjk' in reason
    assert 'HeiseiMin-W3' in reason and 'STSong-Light' in reason
