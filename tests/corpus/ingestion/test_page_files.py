"""Images of pages: upright, opaque, bounded, and untouched where nothing has to be done."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vrag_jax.corpus.ingestion import page_files as images
from vrag_jax.corpus.ingestion.ingest import ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.ingestion.page_files import count_frames, store_image
from vrag_jax.corpus.pages import PageStore, scan_folder
from vrag_jax.perception.image_files import limit_pixels, load_image


def gradient(size, mode='RGB'):
    """An image that is not the same turned, with no two rows alike."""
    width, height = size
    rows = np.linspace(0, 255, height)[:, None] * np.ones(width)
    columns = np.linspace(0, 255, width)[None] * np.ones(height)[:, None]
    return Image.fromarray(np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)).convert(mode)


def store(file, tmp_path, frame=0, image_format='png', max_pixels=10_000):
    written, size = store_image(file, frame, tmp_path / 'page', image_format, 90, max_pixels)
    image = Image.open(written)
    image.load()
    assert image.size == size
    return written, image


@pytest.mark.parametrize('suffix, stored', [
    ('jpg', '.jpg'), ('png', '.png'), ('webp', '.webp'), ('JPEG', '.jpg')])
def test_what_is_fine_is_copied_byte_for_byte(tmp_path, suffix, stored):
    gradient((40, 30)).save(tmp_path / f'a.{suffix}')
    written, _ = store(tmp_path / f'a.{suffix}', tmp_path, image_format='webp')
    assert written.name == f'page{stored}'
    assert written.read_bytes() == (tmp_path / f'a.{suffix}').read_bytes()


@pytest.mark.parametrize('orientation, turn', [
    (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270),
    (8, Image.Transpose.ROTATE_90), (2, Image.Transpose.FLIP_LEFT_RIGHT)])
def test_images_are_turned_by_their_exif_orientation(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = gradient((40, 30))
    image.save(tmp_path / 'a.png', exif=exif)
    _, found = store(tmp_path / 'a.png', tmp_path)
    np.testing.assert_array_equal(found, image.transpose(turn))
    assert 0x0112 not in found.getexif()


def test_what_is_transparent_is_seen_on_white(tmp_path):
    image = gradient((40, 30), 'RGBA')
    image.putalpha(Image.new('L', image.size, 0))
    image.paste((10, 20, 30, 255), (0, 0, 20, 30))
    image.save(tmp_path / 'a.png')
    _, found = store(tmp_path / 'a.png', tmp_path)
    assert found.mode == 'RGB'
    assert found.getpixel((5, 5)) == (10, 20, 30) and found.getpixel((30, 5)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    values = np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / 'a.tiff')
    _, found = store(tmp_path / 'a.tiff', tmp_path)
    difference = np.asarray(found.convert('L'), np.float64) - values / 257
    assert np.abs(difference).max() <= 1


def test_every_frame_of_a_tiff_is_a_page(tmp_path):
    frames = [Image.new('RGB', (10 + i, 8), (i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / 'a.tif', save_all=True, append_images=frames[1:])
    assert count_frames(tmp_path / 'a.tif') == 3
    for i in range(3):
        written, found = store(tmp_path / 'a.tif', tmp_path, frame=i)
        assert written.suffix == '.png' and found.size == (10 + i, 8)
        assert found.getpixel((0, 0)) == (i, 0, 0)


def test_large_images_are_scaled_down_to_the_limit(tmp_path):
    gradient((400, 100)).save(tmp_path / 'a.png')
    _, found = store(tmp_path / 'a.png', tmp_path, image_format='jpeg')
    assert found.format == 'JPEG' and found.size == (200, 50)
    expected = gradient((400, 100)).resize((200, 50), Image.Resampling.BOX)
    assert np.abs(np.asarray(found, float) - np.asarray(expected, float)).mean() < 3


@pytest.mark.parametrize('size', [(400, 100), (1, 100_000), (7, 7000)])
def test_any_shape_is_scaled_down_to_a_number_of_pixels(size):
    small = limit_pixels(Image.new('RGB', size), 1000)
    assert small.width * small.height <= 1000
    assert small.width >= 1 and small.height >= 1
    fits = Image.new('RGB', (20, 50))
    assert limit_pixels(fits, 1000) is fits


def test_a_broken_image_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / 'a.jpg')
    whole = (tmp_path / 'a.jpg').read_bytes()
    for name, content in (('cut.jpg', whole[:len(whole) // 2]), ('b.png', b'no image')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match='cannot be read as an image'):
            store(tmp_path / name, tmp_path)
    with pytest.raises(ValueError, match='cannot be read as an image'):
        count_frames(tmp_path / 'b.png')
    with pytest.raises(ValueError, match='cannot be read as an image'):
        store(tmp_path / 'a.jpg', tmp_path, frame=1)
    assert not list(tmp_path.glob('page*'))


def claim(file, width, height):
    """Writes a PNG that is nothing but a header."""
    header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    data = b'IDAT'
    file.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
        for chunk in (header, data)))


def test_scans_of_large_sheets_go_in_and_no_more_than_a_gigapixel(tmp_path):
    source = tmp_path / 'in'
    source.mkdir()
    plan = Image.new('1', (16_000, 12_000), 1)
    plan.paste(0, (0, 0, 8000, 12_000))
    plan.save(source / 'plan.png')
    Image.new('1', (13_000, 14_000)).save(source / 'sheet.tif', compression='group4')
    claim(source / 'bomb.png', 40_000, 30_000)
    config = IngestConfig(max_pixels=120_000, workers=1, images='file', ocr='never')
    report = ingest([source], tmp_path / 'out', config, progress=False)
    [(file, reason)] = report.failed
    assert file == 'bomb.png' and 'limit of 1000000000 pixels' in reason
    pages = PageStore.open(tmp_path / 'out' / 'pages.jsonl')
    assert {name: pages.image(name).size for name in pages.ids} == {
        'plan_1': (400, 300), 'sheet_1': (333, 359)}
    assert [pages.image('plan_1').getpixel((x, 150))[0] for x in (10, 390)] == [0, 255]


def test_every_frame_is_held_to_the_limit(tmp_path, monkeypatch):
    frames = [Image.new('L', (10, 10)), Image.new('L', (10, 11))]
    frames[0].save(tmp_path / 'a.tif', save_all=True, append_images=frames[1:])
    monkeypatch.setattr(images, 'MAX_PIXELS', 100)
    store(tmp_path / 'a.tif', tmp_path)
    with pytest.raises(ValueError, match='its 10 x 11 pixels are more than 100'):
        store(tmp_path / 'a.tif', tmp_path, frame=1)


def test_a_page_that_cannot_be_written_is_no_broken_image(tmp_path):
    gradient((40, 30)).save(tmp_path / 'a.png')
    with pytest.raises(FileNotFoundError):
        store(tmp_path / 'a.png', tmp_path / 'nowhere')


def test_a_large_jpeg_is_not_decoded_as_a_whole(tmp_path, monkeypatch):
    upright, seen = images.upright_rgb, []
    monkeypatch.setattr(images, 'upright_rgb',
                        lambda image, most: seen.append(image.size) or upright(image, most))
    gradient((800, 600)).save(tmp_path / 'a.jpg')
    _, found = store(tmp_path / 'a.jpg', tmp_path, max_pixels=30_000)
    assert seen == [(200, 150)] and found.size == (200, 150)
    expected = gradient((800, 600)).resize((200, 150), Image.Resampling.BOX)
    assert np.abs(np.asarray(found, float) - np.asarray(expected, float)).mean() < 2


def test_what_pillow_takes_for_a_bomb_is_named_where_pages_are_opened(tmp_path):
    claim(tmp_path / 'a.png', 20_000, 10_000)
    for read in (lambda: load_image(tmp_path / 'a.png'), lambda: scan_folder(tmp_path)):
        with pytest.raises(ValueError, match=r'a\.png: cannot be read as an image: .* limit'):
            read()
