"""One way in for image files: formats by name, upright, on white, all of 8 bits."""

import ast
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vrag_jax
from vrag_jax.corpus.pages import Page, PageStore, scan_folder
from vrag_jax.perception.image_files import FORMATS, load_image, open_image, upright_size

EPS = (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 10\n%%EndComments\n'
       b'newpath 0 0 moveto 20 10 lineto stroke\nshowpage\n%%EOF\n')
PACKAGE = Path(vrag_jax.__file__).parent


def test_nobody_opens_images_but_the_one_module():
    """`Image.open` or `from PIL.Image import open`, under whichever name."""
    openers = set()
    for file in PACKAGE.rglob('*.py'):
        names = {'PIL'}
        for node in ast.walk(ast.parse(file.read_text('utf-8'))):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('PIL'):
                names |= {alias.asname or alias.name for alias in node.names}
                if node.module == 'PIL.Image' and any(a.name == 'open' for a in node.names):
                    openers.add(file.name)
            if isinstance(node, ast.Attribute) and node.attr == 'open':
                owner = ast.unparse(node.value)
                if owner.split('.')[-1] == 'Image' or owner in names:
                    openers.add(file.name)
    assert openers == {'image_files.py'}


@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.eps'])
def test_eps_is_no_image_whatever_its_name(tmp_path, name, monkeypatch):
    called = []
    monkeypatch.setattr('PIL.EpsImagePlugin.Ghostscript', lambda *_, **__: called.append(1))
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(ValueError, match=f'{name}: cannot be read as an image'):
        load_image(tmp_path / name)
    store = PageStore(tmp_path, [Page('p', 'p', 1, name, 20, 10)])
    with pytest.raises(ValueError, match='cannot be read as an image'):
        store.image('p')
    if name != 'a.eps':
        with pytest.raises(ValueError, match='cannot be read as an image'):
            scan_folder(tmp_path)
    assert called == []


@pytest.mark.parametrize('suffix', [
    'jpg', 'jpeg', 'jpe', 'jfif', 'png', 'webp', 'tif', 'tiff', 'gif', 'bmp', 'jp2', 'j2k'])
def test_pages_are_of_all_the_formats(tmp_path, suffix):
    Image.new('RGB', (30, 20), (250, 10, 10)).save(tmp_path / f'a.{suffix}')
    [page] = scan_folder(tmp_path)
    image = PageStore(tmp_path, [page]).image('a')
    assert image.mode == 'RGB' and image.size == (30, 20)
    assert np.abs(np.asarray(image, int) - (250, 10, 10)).max() <= 6
    with open_image(tmp_path / f'a.{suffix}') as opened:
        assert opened.format in FORMATS


def test_of_an_animation_the_first_picture_is_shown(tmp_path):
    frames = [Image.new('RGB', (8, 8), colour) for colour in ('red', 'blue')]
    for name in ('a.gif', 'a.webp', 'a.png'):
        options = {'lossless': True} if name == 'a.webp' else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert load_image(tmp_path / name).getpixel((4, 4)) == (255, 0, 0)


def chunk(kind, data):
    return (struct.pack('>I', len(data)) + kind + data
            + struct.pack('>I', zlib.crc32(kind + data)))


def write_png(file, rows, bits, colour, transparent):
    """A PNG of one transparent value: `rows` are the packed bytes of its lines."""
    channels = 3 if colour == 2 else 1
    width = len(rows[0]) * 8 // (bits * channels)
    file.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack(
        '>IIBBBBB', width, len(rows), bits, colour, 0, 0, 0)) + chunk(b'tRNS', transparent)
        + chunk(b'IDAT', zlib.compress(b''.join(b'\0' + row for row in rows)))
        + chunk(b'IEND', b''))


@pytest.mark.parametrize('bits, colour, row, transparent', [
    (1, 0, b'\x0f', b'\0\0'), (1, 0, b'\xf0', b'\0\1'),  # What is not transparent, last.
    (2, 0, b'\x55\x00', b'\0\1'), (4, 0, b'\x77\x77\x00\x00', b'\0\7'),
    (8, 0, b'\7\7\0\0', b'\0\7'), (16, 0, b'\1\7\1\7\0\0\0\0', b'\1\7'),
    (8, 2, b'\1\2\3' * 2 + b'\0\0\0' * 2, b'\0\1\0\2\0\3'),
    (16, 2, b'\1\0\2\0\3\0' * 2 + b'\0' * 12, b'\1\0\2\0\3\0')])
def test_one_transparent_value_is_white_at_any_depth(tmp_path, bits, colour, row, transparent):
    write_png(tmp_path / 'a.png', [row] * 4, bits, colour, transparent)
    pixels = np.asarray(load_image(tmp_path / 'a.png'))
    half = pixels.shape[1] // 2
    assert (pixels[:, :half] == 255).all()
    assert (pixels[:, half:] == (255 if row == b'\x0f' else 0)).all()


@pytest.mark.parametrize('name, mode', [
    ('a.png', 'RGBA'), ('a.png', 'LA'), ('a.png', 'P'), ('a.tif', 'RGBA'), ('a.webp', 'RGBA'),
    ('a.gif', 'RGBA')])
def test_black_text_on_nothing_is_black_on_white(tmp_path, name, mode):
    image = Image.new('RGBA', (20, 10), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 5, 10))
    options = {'lossless': True} if name == 'a.webp' else {}
    image.convert(mode).save(tmp_path / name, **options)
    shown = load_image(tmp_path / name)
    assert shown.getpixel((2, 5)) == (0, 0, 0) and shown.getpixel((15, 5)) == (255, 255, 255)


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'tif'])
def test_the_size_told_is_that_of_the_upright_image(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new('RGB', (30, 20), 'white')
    image.paste('black', (0, 0, 10, 20))
    file = tmp_path / f'a.{suffix}'
    image.save(file, exif=exif)
    shown = load_image(file)
    assert upright_size(file) == shown.size == ((20, 30) if orientation > 4 else (30, 20))
    dark = np.argwhere(np.asarray(shown.convert('L')) < 100).mean(0)
    at = {1: (9.5, 4.5), 3: (9.5, 24.5), 6: (4.5, 9.5), 8: (24.5, 9.5)}[orientation]
    np.testing.assert_allclose(dark, at, atol=0.5)


def ramp(top, dtype, low=0):
    return np.linspace(low, top, 600).reshape(20, 30).astype(dtype)


WIDE = [ramp(top, np.uint16) for top in (65535, 4095, 4080, 1023, 255)]
DEEP = [ramp(65535, '>u2'), ramp(4095, '>u2'), ramp(4095, np.int32), ramp(65535, np.int32),
        ramp(1_000_000, np.int32), ramp(2**31 - 1, np.int32), ramp(4000, np.int32, -1000),
        ramp(1.0, np.float32), ramp(255, np.float32), ramp(4095, np.float32),
        ramp(0.01, np.float32), ramp(3.0, np.float32, -2.0)]


@pytest.mark.parametrize('suffix, values', [
    *(('png', values) for values in WIDE), *(('tif', values) for values in WIDE + DEEP)])
def test_samples_of_many_bits_are_scaled_from_black_to_white(tmp_path, suffix, values):
    native = values.astype(values.dtype.newbyteorder('='))
    image = Image.fromarray(native)
    if values.dtype == np.dtype('>u2'):
        image = Image.frombytes('I;16B', native.shape[::-1], values.tobytes())
    image.save(tmp_path / f'a.{suffix}')
    shown = np.asarray(load_image(tmp_path / f'a.{suffix}').convert('L'), float)
    low, high = float(native.min()), float(native.max())
    expected = (native.astype(float) - low) / (high - low) * 255
    assert np.abs(shown - expected).max() <= 2


def test_the_file_says_what_is_white(tmp_path):
    write_tiff(tmp_path / 'a.tif', np.full((4, 4), 600, '<u2'), white=1200)
    assert load_image(tmp_path / 'a.tif').getpixel((0, 0)) == (128,) * 3


def test_unsigned_samples_of_32_bits_and_white_that_is_zero(tmp_path):
    values = ramp(2**32 - 1, np.uint32)
    write_tiff(tmp_path / 'a.tif', values)
    shown = np.asarray(load_image(tmp_path / 'a.tif').convert('L'), float)
    assert np.abs(shown - values / 2**32 * 255).max() <= 2
    write_tiff(tmp_path / 'b.tif', ramp(4095, '<u2'), photometric=0)
    assert load_image(tmp_path / 'b.tif').getpixel((0, 0)) == (255, 255, 255)


def test_floats_that_are_no_numbers_do_not_hide_the_others(tmp_path):
    values = ramp(1.0, np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(values).save(tmp_path / 'a.tif')
    shown = np.asarray(load_image(tmp_path / 'a.tif').convert('L'), float)
    assert np.abs(shown[1:] - values[1:] * 255).max() <= 2 and shown[0, 1] == 255


@pytest.mark.parametrize('dtype, value', [(np.uint16, 0), (np.int32, 0), (np.float32, 0)])
def test_what_is_all_black_stays_black(tmp_path, dtype, value):
    Image.fromarray(np.full((4, 4), value, dtype)).save(tmp_path / 'a.tif')
    assert load_image(tmp_path / 'a.tif').getextrema() == ((0, 0),) * 3


def test_colours_of_twelve_bits_in_sixteen_are_no_night(tmp_path):
    rows = np.zeros((4, 4, 3), '<u2')
    rows[..., 0], rows[..., 1] = 4095, 2048
    write_tiff(tmp_path / 'a.tif', rows)
    assert np.abs(np.subtract(load_image(tmp_path / 'a.tif').getpixel((1, 1)), (255, 128, 0))
                  ).max() <= 10


def write_tiff(file, values, photometric=None, white=0):
    """A TIFF as its specification has it (6.0, section 2): Pillow does not write all of them."""
    height, width, *rest = values.shape
    samples, bits = (rest or [1])[0], 8 * values.dtype.itemsize
    data = values.tobytes()
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, samples, bits), (259, 3, 1, 1),
               (262, 3, 1, (2 if rest else 1) if photometric is None else photometric),
               (273, 4, 1, 0), (277, 3, 1, samples), (278, 3, 1, height),
               (279, 4, 1, len(data)), *([(281, 3, 1, white)] if white else [])]
    after = 8 + 2 + len(entries) * 12 + 4  # The depths of three samples, then all of them.
    values_of = {273: after + 6, **({258: after} if samples > 1 else {})}
    file.write_bytes(struct.pack('<2sHIH', b'II', 42, 8, len(entries)) + b''.join(
        struct.pack('<HHII', tag, kind, count, values_of.get(tag, value))
        for tag, kind, count, value in entries) + struct.pack('<I3H', 0, bits, bits, bits) + data)


@pytest.mark.parametrize('mode', ['CMYK', 'YCbCr'])
def test_other_colour_spaces_become_rgb(tmp_path, mode):
    Image.new('RGB', (8, 8), (200, 30, 60)).convert(mode).save(tmp_path / 'a.tif')
    assert np.abs(np.subtract(load_image(tmp_path / 'a.tif').getpixel((4, 4)), (200, 30, 60))
                  ).max() <= 3


def test_the_cases(shared_dir):
    folder = shared_dir / 'cases' / 'images'
    if not folder.is_dir():
        pytest.skip(f'needs {folder}')
    with pytest.raises(ValueError, match='cannot be read as an image'):
        load_image(folder / 'eps.jpg')
    text = np.asarray(load_image(folder / 'black_text_transparent.png').convert('L'))
    assert text.max() == 255 and (text == 255).mean() > 0.8 and text.min() == 0
    assert np.asarray(load_image(folder / 'twelve_bits.tif').convert('L')).max() >= 250
    assert load_image(folder / 'a.gif').size == (600, 300)
