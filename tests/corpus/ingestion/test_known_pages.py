"""Of a folder of images only what is new is read, and it is as if all had been read."""

import dataclasses
import os
import shutil

import pytest
from PIL import Image, ImageDraw, ImageFont

from vrag_jax.corpus.ingestion import folders
from vrag_jax.corpus.ingestion.ingest import ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.pages import PageStore

CONFIG = IngestConfig(workers=1, image_format='png', ocr='never')


def picture(file, grey, suffix='.png'):
    """A page that is encoded anew (it is transparent) or kept (a JPEG)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if suffix == '.png':
        Image.new('LA', (12, 9), (grey, 200)).save(file.with_suffix('.png'))
    else:
        Image.new('L', (12, 9), grey).save(file.with_suffix('.jpg'))


@pytest.fixture
def scan(tmp_path):
    for number in range(1, 7):
        picture(tmp_path / 'in' / 'scan' / f'{number}0', 40 * number,
                '.jpg' if number % 2 else '.png')
    return tmp_path / 'in' / 'scan'


def change(scan, what):
    """Changes a folder; returns how many of its images nobody has read yet."""
    if what == 'added':
        picture(scan / '70', 7)
    elif what == 'inserted':  # All behind it are renumbered.
        picture(scan / '15', 7)
    elif what == 'replaced':
        picture(scan / '20', 7)
    elif what == 'removed':
        (scan / '10.jpg').unlink()
        return 0
    elif what == 'turned round':
        (scan / '10.jpg').rename(scan / '99.jpg')
        return 0
    elif what == 'moved to another document':
        (scan.parent / 'other').mkdir()
        (scan / '20.png').rename(scan.parent / 'other' / '1.png')
        return 0
    elif what == 'twice the same':
        shutil.copy(scan / '20.png', scan / '21.png')
        return 0
    return 1


@pytest.mark.parametrize('what', [
    'added', 'inserted', 'replaced', 'removed', 'turned round', 'moved to another document',
    'twice the same'])
def test_what_is_known_is_not_read_again(scan, tmp_path, tree, what):
    out, fresh = tmp_path / 'out', tmp_path / 'fresh'
    ingest([tmp_path / 'in'], out, CONFIG, progress=False)
    new = change(scan, what)
    report = ingest([tmp_path / 'in'], out, CONFIG, progress=False)
    assert report.pages_read == new and report.changed
    ingest([tmp_path / 'in'], fresh, CONFIG, progress=False)
    assert tree(out) == tree(fresh)


def test_other_groupings_and_names_read_nothing(scan, tmp_path, tree):
    out = tmp_path / 'out'
    ingest([tmp_path / 'in'], out, CONFIG, progress=False)
    single = dataclasses.replace(CONFIG, images='file', most_deleted=1.0)
    report = ingest([tmp_path / 'in'], out, single, progress=False)
    assert report.pages_read == 0 and len(report.added) == 6
    ingest([tmp_path / 'in'], tmp_path / 'fresh', single, progress=False)
    assert tree(out) == tree(tmp_path / 'fresh')


@pytest.mark.parametrize('links', [True, False])
def test_killed_while_pages_are_taken_over_it_goes_on(scan, tmp_path, tree, monkeypatch, links):
    out = tmp_path / 'out'
    ingest([tmp_path / 'in'], out, CONFIG, progress=False)
    change(scan, 'inserted')
    link, left = os.link, 3

    def killed(source, target):
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        if not links:
            raise OSError(1, 'not permitted')
        link(source, target)

    monkeypatch.setattr(folders.os, 'link', killed)
    with pytest.raises(KeyboardInterrupt):
        ingest([tmp_path / 'in'], out, CONFIG, progress=False)
    assert len(list(out.glob('documents/*.partial/*.json'))) == 2
    assert ingest([tmp_path / 'in'], out, CONFIG, progress=False).pages_read == 1
    ingest([tmp_path / 'in'], tmp_path / 'fresh', CONFIG, progress=False)
    assert tree(out) == tree(tmp_path / 'fresh')


def test_images_that_are_damaged_or_cannot_be_read_are_not_taken_over(scan, tmp_path, tree):
    (scan / '80.png').write_bytes(b'no image')
    out = tmp_path / 'out'
    ingest([tmp_path / 'in'], out, CONFIG, progress=False)
    store = PageStore.open(out / 'pages.jsonl', leased=False)
    store.path('scan_2').write_bytes(b'damaged')
    change(scan, 'added')
    report = ingest([tmp_path / 'in'], out, CONFIG, progress=False)
    assert report.pages_read == 8 and [file for file, _ in report.failed] == ['scan/80.png']
    (scan / '70.png').unlink()
    # What could not be read is tried again, beside what is new.
    assert ingest([tmp_path / 'in'], out, CONFIG, progress=False).pages_read == 1
    ingest([tmp_path / 'in'], tmp_path / 'fresh', CONFIG, progress=False)
    assert tree(out) == tree(tmp_path / 'fresh')


def write(file, text):
    image = Image.new('RGB', (400, 90), 'white')
    ImageDraw.Draw(image).text((20, 20), text, 'black', ImageFont.load_default(36))
    image.save(file)


@pytest.mark.slow
def test_what_the_ocr_has_read_is_taken_over(tmp_path, tree):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    source, out = tmp_path / 'in', tmp_path / 'out'
    source.mkdir()
    write(source / '10.png', 'QUARTERLY')
    write(source / '20.png', 'TURNOVER')
    write(source / '30.png', 'MELONS')
    plain = ingest([source], out, CONFIG, progress=False)
    assert plain.pages_read == 3
    with_ocr = dataclasses.replace(CONFIG, ocr='auto')
    assert ingest([source], out, with_ocr, progress=False).ocr_pages == 3
    write(source / '15.png', 'HARBOUR')
    (source / '30.png').unlink()
    report = ingest([source], out, with_ocr, progress=False)
    assert (report.pages_read, report.ocr_pages) == (1, 3)
    assert [page.text for page in PageStore.open(out / 'pages.jsonl')] == [
        'QUARTERLY', 'HARBOUR', 'TURNOVER']
    ingest([source], tmp_path / 'fresh', with_ocr, progress=False)
    assert tree(out) == tree(tmp_path / 'fresh')
    # Without OCR pages are as if there had never been any.
    write(source / '40.png', 'LEMONS')
    ingest([source], out, CONFIG, progress=False)
    ingest([source], tmp_path / 'plain', CONFIG, progress=False)
    assert tree(out) == tree(tmp_path / 'plain')


def test_the_case_of_a_seventh_image(shared_dir, tmp_path, tree):
    folder = shared_dir / 'cases' / 'folder_add' / 'scan'
    if not folder.is_dir():
        pytest.skip(f'needs {folder}')
    scan = tmp_path / 'in' / 'scan'
    shutil.copytree(folder, scan)
    out = tmp_path / 'out'
    ingest([tmp_path / 'in'], out, CONFIG, progress=False)
    Image.new('RGB', (200, 100), 'green').save(scan / '7.png')
    assert ingest([tmp_path / 'in'], out, CONFIG, progress=False).pages_read == 1
    ingest([tmp_path / 'in'], tmp_path / 'fresh', CONFIG, progress=False)
    assert tree(out) == tree(tmp_path / 'fresh')
