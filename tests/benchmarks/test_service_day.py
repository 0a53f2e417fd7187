"""The benchmark of updates beside clients: what pages spell, and that faults are seen."""

import time
from pathlib import Path

import pypdfium2
import pytest

from benchmarks.service_day_checks import Versions, growth, plot
from benchmarks.service_day_pages import (
    PAGES,
    Spelled,
    read_picture,
    write_document,
)


@pytest.mark.parametrize('document,version,dpi', [(0, 1, 144), (1023, 4095, 72), (517, 200, 200)])
def test_pages_spell_what_they_are(tmp_path: Path, document, version, dpi):
    write_document(tmp_path, document, version)
    [file] = tmp_path.iterdir()
    pdf = pypdfium2.PdfDocument(file)
    assert len(pdf) == PAGES and file.name == f'doc{document:04d}.pdf'
    for number, page in enumerate(pdf, start=1):
        spelled = Spelled(document, number, version)
        assert read_picture(page.render(scale=dpi / 72).to_pil()) == spelled
        assert page.get_textpage().get_text_range().strip() == spelled.words
    pdf.close()


def test_no_two_versions_share_a_word():
    words = [word for document in range(20) for version in range(20) for page in (1, 2, 3)
             for word in Spelled(document, page, version).words.split()]
    assert len(words) == len(set(words)) == 20 * 20 * 3 * 3


def test_versions_that_are_too_old_or_never_were_are_known():
    versions = Versions(2)
    assert versions.next([0]) == {0: 2} and versions.newest(0) == 1
    now = time.monotonic()
    assert versions.behind(0, 1, now) == versions.behind(0, 2, now) == 0
    versions.built({0: 2})
    assert versions.newest(0) == 2
    assert versions.behind(0, 1, time.monotonic() + 50) > 49
    assert versions.behind(0, 2, time.monotonic() + 50) == 0
    assert versions.behind(0, 3, now) == versions.behind(1, 2, now) == float('inf')
    assert versions.settled(0, 2, time.monotonic() + 50) and not versions.settled(0, 1, now + 50)


def test_growth_is_what_is_taken_more_and_more():
    flat = [(float(n), 100.0 + n % 2) for n in range(100)]
    rising = [(float(n), 100.0 + n) for n in range(100)]
    assert abs(growth(flat)) <= 1 and growth(rising) == 50
    assert plot(rising, [10.0, 20.0], 'title').size == (900, 360)
