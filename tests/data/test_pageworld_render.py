"""Pages show what their layouts say; values are legible in a crop, not on the page."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageChops
from sklearn.neighbors import KNeighborsClassifier

from configs import tiny
from vrag_jax.data.pageworld.config import PageWorldConfig
from vrag_jax.data.pageworld.layout import document_names, sample_document
from vrag_jax.data.pageworld.render import render_page
from vrag_jax.perception.image_ops import PixelLimits, crop_and_zoom, show_page

CONFIG = PageWorldConfig()
LIMITS = PixelLimits(112 * 56, 112 * 112)


def test_is_deterministic_and_of_the_size_asked_for():
    page = sample_document(CONFIG, 'velora')[0]
    image = render_page(page, CONFIG)
    assert (image.mode, image.size) == ('RGB', CONFIG.page_size)
    assert image.tobytes() == render_page(page, CONFIG).tobytes()


def test_headings_fill_their_boxes():
    for page in sample_document(CONFIG, 'velora'):
        image = np.asarray(render_page(page, CONFIG).convert('L'))
        for panel in page.panels:
            x1, y1, x2, y2 = panel.heading_box
            ink = np.argwhere(image[y1 - 4:y2 + 4, panel.box[0]:panel.box[2]] < 128)
            (top, left), (bottom, right) = ink.min(0), ink.max(0)
            assert bottom - top + 1 == pytest.approx(CONFIG.heading_height, abs=4)
            center = (left + right) / 2 + panel.box[0]
            assert center == pytest.approx((x1 + x2) / 2, abs=2)


def test_each_value_changes_its_own_part_of_the_body_only():
    seen = set()
    for page in sample_document(CONFIG, 'velora'):
        image = render_page(page, CONFIG)
        for i, panel in enumerate(page.panels):
            cells = ('>', 'W', '') if panel.kind == 'pointer' else tuple(
                str((int(cell) + 1) % 10) for cell in panel.cells)
            panels = list(page.panels)
            panels[i] = dataclasses.replace(panel, cells=cells)
            other = render_page(dataclasses.replace(page, panels=tuple(panels)), CONFIG)
            left, top, right, bottom = ImageChops.difference(image, other).getbbox()
            x1, y1, x2, y2 = panel.body_box
            assert x1 <= left < right <= x2
            assert y1 <= top < bottom <= y2
            seen.add(panel.kind)
    assert seen == {'text', 'table', 'chart', 'pointer'}


def test_bars_are_proportional_to_their_values():
    page = sample_document(CONFIG, 'velora')[0]
    panel = dataclasses.replace(page.panels[0], kind='chart', cells=('9', '3', '6'), target=None)
    page = dataclasses.replace(page, panels=(panel, *page.panels[1:]))
    body = np.asarray(render_page(page, CONFIG).crop(panel.body_box)).astype(int)
    saturated = body.max(-1) - body.min(-1) > 30
    heights = [saturated[:, part].any(1).sum() for part in
               (slice(0, 38), slice(38, 74), slice(74, 112))]
    # A bar is drawn one pixel higher than its value, which a value of 0 shows.
    a, b, c = (height - 1 for height in heights)
    assert a > c > b > 0
    assert a / b == pytest.approx(3, abs=1)
    assert a / c == pytest.approx(1.5, abs=0.4)


# The world as it is by default, and as `configs/tiny.py` has it: each with the size of
# the window around a digit on the shown page, and in a crop.
WORLDS = {'default': (CONFIG, 7, 24),
          'tiny': (PageWorldConfig(**tiny.get_config().data.pageworld), 5, 30)}


@pytest.fixture(scope='module', params=WORLDS)
def number_pages(request):
    """Config, sizes of windows, and pages of numbers only, with their images."""
    config, on_page, in_crop = WORLDS[request.param]
    config = dataclasses.replace(
        config, text_share=1, table_share=0, chart_share=0, position_share=0, layout_share=0,
        multi_hop_share=0)
    pages = [page for name in document_names(0, 75) for page in sample_document(config, name)]
    return config, on_page, in_crop, [(page, render_page(page, config)) for page in pages]


def classify(samples, classes):
    """Share of right answers of a nearest-neighbour classifier on the last fifth."""
    values = np.stack([np.asarray(s, np.float32).ravel() for s in samples])
    split = len(values) * 4 // 5
    model = KNeighborsClassifier(3).fit(values[:split], classes[:split])
    return model.score(values[split:], classes[split:])


def ink_at_the_middle(samples):
    """Keeps what is darker than the paper's spots, moved to the middle of its image."""
    centered_ink = []
    for sample in samples:
        ink = np.maximum(120 - np.asarray(sample, np.float32), 0)
        rows, columns = np.nonzero(ink)
        if len(rows):
            shift = [n // 2 - int(places.mean().round())
                     for n, places in zip(ink.shape, (rows, columns), strict=True)]
            ink = np.roll(ink, shift, (0, 1))
        centered_ink.append(ink)
    return centered_ink


def centered(image, box, size):
    """Cuts a window around the middle of a box, wherever it lies in the image."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    left, top = round(x - size / 2), round(y - size / 2)
    return image.crop((left, top, left + size, top + size)).convert('L')


def digit_windows(config, number_pages, look, size):
    """Cuts a window around each digit out of what `look` shows of its body."""
    samples, digits = [], []
    for page, image in number_pages:
        for panel in page.panels:
            view, frame = look(image, page, panel)
            middle = (panel.body_box[0] + panel.body_box[2]) // 2
            for offset, digit in zip((-1, 0, 1), panel.cells, strict=True):
                x = middle + offset * config.cell_pitch
                box = frame.from_page((x, panel.body_box[1], x, panel.body_box[3]))
                samples.append(centered(view, box, size))
                digits.append(digit)
    return samples, digits


def test_headings_can_be_read_on_the_page_as_it_is_shown(number_pages):
    samples, letters = [], []
    *_, pages = number_pages
    for page, image in pages:
        view, frame = show_page(image, page.page_id, LIMITS)
        assert view.size == (112, 112)
        for panel in page.panels:
            samples.append(centered(view, frame.from_page(panel.heading_box), 20))
            letters.append(panel.heading)
    assert classify(samples, letters) > 0.98


def test_values_cannot_be_read_on_the_page_but_in_a_crop(number_pages):
    config, on_page, in_crop, pages = number_pages
    shown = {page.page_id: show_page(image, page.page_id, LIMITS) for page, image in pages}

    def whole(image, page, panel):
        return shown[page.page_id]

    def crop(image, page, panel):
        _, frame = shown[page.page_id]
        return crop_and_zoom(image, frame, frame.from_page(panel.body_box), LIMITS)

    windows, digits = digit_windows(config, pages, crop, in_crop)
    assert classify(ink_at_the_middle(windows), digits) > 0.95
    # Even for one who knows where each digit is, most of them are lost on the page:
    # a number of three digits is read in less than one case of eight.
    windows, digits = digit_windows(config, pages, whole, on_page)
    assert classify(windows, digits) < 0.5
    assert classify(ink_at_the_middle(windows), digits) < 0.5


def test_a_page_is_drawn_at_the_font_size_that_gives_the_height_asked_for():
    config = dataclasses.replace(CONFIG, heading_height=40)
    page = sample_document(config, 'velora')[0]
    x1, y1, x2, y2 = page.panels[0].heading_box
    ink = render_page(page, config).crop((x1, y1, x2, y2)).convert('L').point(lambda v: v < 128)
    _, top, _, bottom = Image.Image.getbbox(ink)
    assert bottom - top == pytest.approx(40, abs=3)
