"""Layouts hold what questions rely on, for any grid, and follow from the seed alone."""

import dataclasses
import itertools
from collections import Counter

import pytest

from vrag_jax.data.pageworld.config import PageWorldConfig
from vrag_jax.data.pageworld.layout import (
    PageSpec,
    document_names,
    position_names,
    sample_document,
)
from vrag_jax.retrieval.lexical.terms import STOP_WORDS

CONFIGS = {
    'tiny': PageWorldConfig(),
    'two panels': PageWorldConfig(grid=(1, 2), page_size=(448, 240)),
    'nine panels': PageWorldConfig(grid=(3, 3), page_size=(700, 800), pages_per_document=2),
    'long documents': PageWorldConfig(pages_per_document=15),
    'numbers only': PageWorldConfig(
        text_share=1, table_share=0, chart_share=0, position_share=0, layout_share=0,
        multi_hop_share=0, pages_per_document=1, body_jitter=0, panel_jitter=0),
}
PAGES = {name: [sample_document(config, document) for document in document_names(0, 20)]
         for name, config in CONFIGS.items()}


def inside(inner, outer):
    return (outer[0] <= inner[0] < inner[2] <= outer[2]
            and outer[1] <= inner[1] < inner[3] <= outer[3])


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize('name', CONFIGS)
def test_boxes_lie_inside_each_other_and_do_not_overlap(name):
    config = CONFIGS[name]
    for page in itertools.chain(*PAGES[name]):
        assert len(page.panels) == config.panels
        for panel in page.panels:
            assert inside(panel.box, (0, config.title_height, *config.page_size))
            assert inside(panel.heading_box, panel.box)
            assert inside(panel.body_box, panel.box)
            assert not overlap(panel.heading_box, panel.body_box)
            x1, y1, x2, y2 = panel.body_box
            assert (x2 - x1, y2 - y1) == config.body_size
        for a, b in itertools.combinations(page.panels, 2):
            assert not overlap(a.box, b.box)


@pytest.mark.parametrize('name', CONFIGS)
def test_headings_topics_and_kinds(name):
    config = CONFIGS[name]
    for pages in PAGES[name]:
        assert [p.page for p in pages] == list(range(1, config.pages_per_document + 1))
        assert len({p.topic for p in pages}) == len(pages)
        assert {panel.kind for p in pages for panel in p.panels} == set(config.kinds)
        for page in pages:
            assert len({panel.heading for panel in page.panels}) == config.panels
            # No panel can be told by its kind alone.
            assert min(Counter(panel.kind for panel in page.panels).values()) >= 2
            assert page.page_id == f'{page.document}_{page.page}'


@pytest.mark.parametrize('name', CONFIGS)
def test_cells_and_pointers(name):
    for pages in PAGES[name]:
        for page in pages:
            for panel in page.panels:
                if panel.kind != 'pointer':
                    assert panel.target is None
                    assert all(cell in set('0123456789') for cell in panel.cells)
                    assert panel.kind != 'text' or panel.cells[0] != '0'
                    continue
                number, heading = panel.target
                assert number != page.page
                assert pages[number - 1].panel(heading).kind == 'text'
                assert panel.cells == ('>', heading, '')


def test_bodies_move_over_all_the_room_or_not_at_all():
    config = CONFIGS['tiny']
    places = [(p.body_box[0] - p.box[0], p.body_box[1] - p.box[1])
              for page in itertools.chain(*PAGES['tiny']) for p in page.panels]
    room_x = config.panel_size[0] - config.body_size[0]
    spread = max(x for x, _ in places) - min(x for x, _ in places)
    assert 0.8 * room_x < spread <= room_x
    fixed = {(p.position, p.body_box) for page in itertools.chain(*PAGES['numbers only'])
             for p in page.panels}
    assert len(fixed) == 4


def test_a_document_depends_on_seed_and_name_alone():
    config = PageWorldConfig()
    pages = sample_document(config, 'velora')
    assert sample_document(dataclasses.replace(config, train_documents=3), 'velora') == pages
    assert sample_document(dataclasses.replace(config, seed=1), 'velora') != pages
    assert sample_document(config, 'tandik') != pages


def test_names_are_different_and_run_out_with_an_error():
    assert len(set(document_names(0, 20_000))) == 20_000
    assert document_names(0, 5) != document_names(1, 5)
    names = {frozenset(name.split('-')) for name in document_names(0, 20_000)}
    assert len(names) == 20_000  # Also where the order of the parts is lost.
    assert not frozenset.union(*names) & STOP_WORDS
    with pytest.raises(ValueError, match='23104 document names'):
        document_names(0, 23_105)


def test_position_names():
    assert position_names((2, 2)) == ['top left', 'top right', 'bottom left', 'bottom right']
    assert position_names((1, 3)) == ['left', 'center', 'right']
    assert position_names((4, 1)) == ['row 1', 'row 2', 'row 3', 'row 4']
    assert len(set(position_names((3, 5)))) == 15


def test_json_round_trip_and_text():
    page = sample_document(PageWorldConfig(), 'velora')[0]
    assert PageSpec.from_json(page.to_json()) == page
    words = page.text.split()
    assert words[:2] == ['velora', page.topic]
    for panel in page.panels:
        value = ''.join(panel.cells) if panel.kind == 'text' else ' '.join(panel.cells).strip()
        assert f' {panel.heading} {value}' in page.text


def test_a_missing_heading_is_named():
    page = sample_document(PageWorldConfig(), 'velora')[0]
    with pytest.raises(KeyError, match="velora_1 has no panel 'Q'"):
        page.panel('Q')
