"""Manifests come back as written, wrong ones are refused by name, images are bounded."""

import dataclasses
import hashlib
import json
import threading

import pytest
from PIL import Image

from vrag_jax.corpus import pages as pages_module
from vrag_jax.corpus.pages import Page, PageStore, scan_folder
from vrag_jax.retrieval.filters import PageFields, normalised

GOOD = {'page_id': 'a', 'document': 'doc', 'page': 1, 'file': 'a.png', 'width': 8, 'height': 6}


def write_lines(tmp_path, *lines):
    Image.new('RGB', (8, 6)).save(tmp_path / 'a.png')
    manifest = tmp_path / 'pages.jsonl'
    manifest.write_text(
        '\n'.join(x if isinstance(x, str) else json.dumps(x) for x in lines) + '\n', 'utf-8')
    return manifest


def test_a_manifest_comes_back_as_written(tmp_path):
    Image.new('RGB', (8, 6)).save(tmp_path / 'a.png')
    # The text holds a line break of Unicode that is none of JSON lines.
    pages = [Page('z/1', '报告', 1, 'a.png', 8, 6, 'two\u2028lines'),
             Page('a', '报告', 2, 'a.png', 8, 6)]
    PageStore.write(tmp_path / 'pages.jsonl', pages)
    store = PageStore.open(tmp_path / 'pages.jsonl')
    assert list(store) == pages
    assert store.ids == ('z/1', 'a') and len(store) == 2
    assert store['a'] == pages[1] and 'a' in store and 'b' not in store
    assert store.find('报告', 2) == 'a' and store.find('报告', 3) is None
    assert store.path('a') == tmp_path / 'a.png'
    with pytest.raises(KeyError, match='b'):
        store['b']


def test_metadata_comes_back_with_its_types_and_belongs_to_the_fingerprint(tmp_path):
    Image.new('RGB', (8, 6)).save(tmp_path / 'a.png')
    own = {'company': '报告', 'year': 2023, 'share': 0.5, 'audited': True}
    plain, tagged = Page('a', 'd', 1, 'a.png', 8, 6), Page('b', 'd', 2, 'a.png', 8, 6, 'x', own)
    PageStore.write(tmp_path / 'pages.jsonl', [plain, tagged])
    lines = [json.loads(x) for x in (tmp_path / 'pages.jsonl').read_text('utf-8').splitlines()]
    assert 'metadata' not in lines[0] and lines[1]['metadata'] == own
    store = PageStore.open(tmp_path / 'pages.jsonl')
    assert store['a'].metadata == {} and store['b'].metadata == own
    assert [type(v) for v in store['b'].metadata.values()] == [str, int, float, bool]
    changed = dataclasses.replace(tagged, metadata={**own, 'year': 2024})
    assert store.fingerprint != PageStore(tmp_path, [plain, changed]).fingerprint
    assert len({plain, tagged}) == 2  # pages can be members of sets


def test_pages_without_metadata_keep_the_fingerprint_of_indices_made_before_there_was_any(tmp_path):
    store = PageStore(tmp_path, [Page('a', 'd', 1, 'a.png', 8, 6, 'x')])
    before = json.dumps([['a', 'd', 1, 'a.png', 8, 6, 'x']])
    assert store.fingerprint == hashlib.sha256(before.encode()).hexdigest()


def test_fields_that_are_not_ours_are_left_alone(tmp_path):
    store = PageStore.open(write_lines(tmp_path, {**GOOD, 'colour': 'red'}, '', '  '))
    assert store.ids == ('a',)


@pytest.mark.parametrize('line, message', [
    ('{', 'line 2: not JSON'),
    ('[1]', 'line 2: expected an object'),
    ({k: v for k, v in GOOD.items() if k != 'width'}, "line 2: field 'width' is missing"),
    ({**GOOD, 'page_id': ''}, "line 2: field 'page_id': expected a non-empty string"),
    ({**GOOD, 'page_id': 'b', 'page': 0}, "line 2: field 'page': expected a positive integer"),
    ({**GOOD, 'page_id': 'b', 'height': 6.5}, "line 2: field 'height'"),
    ({**GOOD, 'page_id': 'b', 'width': True}, "line 2: field 'width'"),
    ({**GOOD, 'page_id': 'b', 'text': 3}, "line 2: field 'text'"),
    ({**GOOD, 'page_id': 'b', 'file': '/a.png'}, "line 2: field 'file': expected a relative path"),
    ({**GOOD, 'page_id': 'b', 'metadata': [1]}, "line 2: field 'metadata': expected an object"),
    ({**GOOD, 'page_id': 'b', 'metadata': {'': 1}}, "line 2: field 'metadata': expected names"),
    ({**GOOD, 'page_id': 'b', 'metadata': {'page': 1}}, "line 2: field 'metadata': expected names"),
    ({**GOOD, 'page_id': 'b', 'metadata': {'year': None}}, "line 2: field 'metadata.year'"),
    ({**GOOD, 'page_id': 'b', 'metadata': {'x': float('nan')}}, "line 2: field 'metadata.x'"),
    (GOOD, "line 2: page_id 'a' stands already in line 1"),
])
def test_a_wrong_line_is_named(tmp_path, line, message):
    manifest = write_lines(tmp_path, GOOD, line)
    with pytest.raises(ValueError) as error:
        PageStore.open(manifest)
    assert str(manifest) in str(error.value) and message in str(error.value)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.jsonl'):
        PageStore.open(tmp_path / 'none.jsonl')
    manifest = write_lines(tmp_path, GOOD, {**GOOD, 'page_id': 'b', 'file': 'b.png'})
    with pytest.raises(FileNotFoundError, match=r"line 2: file 'b\.png'"):
        PageStore.open(manifest)
    with pytest.raises(ValueError, match='holds no page'):
        PageStore.open(write_lines(tmp_path, ''))


def test_a_manifest_that_open_would_refuse_is_not_written(tmp_path):
    page = Page('a', 'doc', 1, 'a.png', 8, 6)
    with pytest.raises(ValueError, match="'a' stands there twice"):
        PageStore.write(tmp_path / 'pages.jsonl', [page, page])
    with pytest.raises(ValueError, match="field 'page'"):
        PageStore.write(tmp_path / 'pages.jsonl', [Page('a', 'doc', 0, 'a.png', 8, 6)])
    assert list(tmp_path.iterdir()) == []


def test_images_are_rgb_upright_and_of_the_stated_size(tmp_path):
    sideways = Image.new('P', (6, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    sideways.convert('RGB').save(tmp_path / 'a.jpg', exif=exif)
    store = PageStore(tmp_path, [Page('a', 'd', 1, 'a.jpg', 8, 6),
                                 Page('b', 'd', 2, 'a.jpg', 6, 8)])
    assert store.image('a').size == (8, 6) and store.image('a').mode == 'RGB'
    with pytest.raises(ValueError, match="is 8x6, the manifest says 6x8 for 'b'"):
        store.image('b')


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'not an image')
    with pytest.raises(ValueError, match=r'a\.png: cannot be read as an image'):
        PageStore(tmp_path, [Page('a', 'd', 1, 'a.png', 8, 6)]).image('a')


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that are decoded, in order."""
    names = []
    load = pages_module.load_image

    def counting(path):
        names.append(path.name)
        return load(path)

    monkeypatch.setattr(pages_module, 'load_image', counting)
    return names


def test_recent_images_are_kept_up_to_a_number_of_bytes(tmp_path, decoded):
    pages = []
    for name in 'abc':
        Image.new('RGB', (10, 10)).save(tmp_path / f'{name}.png')
        pages.append(Page(name, 'd', 1, f'{name}.png', 10, 10))
    store = PageStore(tmp_path, pages, cache_bytes=2 * 300)
    for name in 'aabacab':  # c pushes out b; then b pushes out c
        store.image(name)
    assert decoded == ['a.png', 'b.png', 'c.png', 'b.png']
    tiny = PageStore(tmp_path, pages, cache_bytes=299)
    assert tiny.image('a').size == tiny.image('a').size == (10, 10)
    assert decoded[4:] == ['a.png', 'a.png']


def test_many_threads_get_the_right_images(make_store):
    store = make_store([''] * 8)
    store = PageStore(store.folder, list(store), cache_bytes=3 * 40 * 30 * 3)
    wrong = []

    def look(start):
        for step in range(60):
            number = (start * 7 + step * 3) % 8 + 1
            if store.image(f'p{number}').getpixel((0, 0)) != (number, 0, 0):
                wrong.append(number)

    threads = [threading.Thread(target=look, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_folder_of_images_becomes_pages_with_explicit_ids(tmp_path):
    (tmp_path / 'report').mkdir()
    Image.new('L', (5, 7)).save(tmp_path / 'report' / '02.png')
    Image.new('RGB', (6, 8)).save(tmp_path / 'report' / '10.JPG')
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new('RGB', (6, 8)).save(tmp_path / 'cover.jpg', exif=exif)
    (tmp_path / 'notes.txt').write_text('no image')
    pages = scan_folder(tmp_path)
    assert pages == [
        Page('cover', tmp_path.name, 1, 'cover.jpg', 8, 6),
        Page('report/02', 'report', 2, 'report/02.png', 5, 7),
        Page('report/10', 'report', 10, 'report/10.JPG', 6, 8)]
    PageStore.write(tmp_path / 'pages.jsonl', pages)
    assert PageStore.open(tmp_path / 'pages.jsonl').image('cover').size == (8, 6)


@pytest.mark.parametrize('files, documents', [
    # Flat folders: the names tell document and number.
    (['deck_3.jpg', 'deck_12.jpg', 'other-deck-07.png'],
     {'deck_3': ('deck', 3), 'deck_12': ('deck', 12), 'other-deck-07': ('other-deck', 7)}),
    (['img/deck_3.jpg', 'img/a_95_1.jpg'],
     {'img/deck_3': ('img/deck', 3), 'img/a_95_1': ('img/a_95', 1)}),
    (['deck_3.jpg'], {'deck_3': ('deck', 3)}),
    # A word for a page between the two.
    (['deck_page_3.jpg', 'deck-p4.jpg', 'plan slide 2.png', 'plan (7).png'],
     {'deck_page_3': ('deck', 3), 'deck-p4': ('deck', 4), 'plan slide 2': ('plan', 2),
      'plan (7)': ('plan', 7)}),
    # Widths after the page's number.
    (['x/s_1_1024.jpg', 'x/s_2_1024.jpg', 'x/t_1.jpg'],
     {'x/s_1_1024': ('x/s', 1), 'x/s_2_1024': ('x/s', 2), 'x/t_1': ('x/t', 1)}),
    # A folder a document, its pages by number, not in the order of letters.
    (['r/1.png', 'r/10.png', 'r/2.png'], {'r/1': ('r', 1), 'r/2': ('r', 2), 'r/10': ('r', 10)}),
    (['r/page_7.png', 'r/page_9.png'], {'r/page_7': ('r', 7), 'r/page_9': ('r', 9)}),
    (['r/scan-a_2.png', 'r/scan-a_3.png'], {'r/scan-a_2': ('r', 2), 'r/scan-a_3': ('r', 3)}),
    # Numbers that do not count pages from 1, or not all pages: the natural order.
    (['r/0.png', 'r/1.png', 'r/10.png'], {'r/0': ('r', 1), 'r/1': ('r', 2), 'r/10': ('r', 3)}),
    (['r/a.png', 'r/p10.png', 'r/p9.png'],
     {'r/a': ('r', 1), 'r/p9': ('r', 2), 'r/p10': ('r', 3)}),
    (['r/plan_2022.png', 'r/plan_2023.png'],
     {'r/plan_2022': ('r', 1), 'r/plan_2023': ('r', 2)}),
    (['r/deck_1.png', 'r/deck-1.png'], {'r/deck-1': ('r', 1), 'r/deck_1': ('r', 2)}),
])
def test_numbers_in_names_are_page_numbers(tmp_path, files, documents):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        Image.new('L', (5, 7)).save(tmp_path / file)
    pages = scan_folder(tmp_path)
    assert {page.page_id: (page.document, page.page) for page in pages} == documents
    assert [page.file for page in pages] == [
        f'{page.page_id}{(tmp_path / page.file).suffix}' for page in pages]
    PageStore.write(tmp_path / 'pages.jsonl', pages)
    for page_id, place in documents.items():
        assert PageStore.open(tmp_path / 'pages.jsonl').find(*place) == page_id


def test_a_folder_without_images_or_with_ambiguous_ones_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='no .jpg'):
        scan_folder(tmp_path)
    Image.new('RGB', (5, 7)).save(tmp_path / '1.png')
    Image.new('RGB', (5, 7)).save(tmp_path / '1.jpg')
    with pytest.raises(ValueError, match=r"page id '1' is taken by 1\.jpg"):
        scan_folder(tmp_path)


CAFE, NFD = 'caf\u00e9', 'cafe\u0301'


def test_pages_are_known_in_any_form_of_unicode(tmp_path):
    for index, stored in enumerate((CAFE, NFD)):
        folder = tmp_path / str(index)
        folder.mkdir()
        Image.new('RGB', (4, 3), 'white').save(folder / f'{stored}.png')
        other = NFD if stored == CAFE else CAFE
        # The manifest was written elsewhere: the file's name is in the other form.
        PageStore.write(folder / f'{stored}.jsonl', [
            Page(f'{stored}_1', stored, 1, f'{other}.png', 4, 3,
                 metadata={f'town {stored}': stored})])
        store = PageStore.open(folder / f'{other}.jsonl')
        assert store.ids == (f'{stored}_1',) and 'cafe_1' not in store
        for form in (CAFE, NFD):
            assert f'{form}_1' in store and store[f'{form}_1'].document == stored
            assert store.find(form, 1) == f'{stored}_1'
            assert store.image(f'{form}_1').size == (4, 3)
            fields = PageFields(list(store))
            for name in ('document', f'town {form}'):
                assert fields.matching(normalised({name: [form]})).tolist() == [True]
            assert fields.matching(normalised({'page_id': f'{form}_1'})).tolist() == [True]


def test_ids_that_differ_in_their_form_of_unicode_only_are_refused(tmp_path):
    pages = [Page(f'{form}_1', form, 1, 'a.png', 4, 3) for form in (CAFE, NFD)]
    with pytest.raises(ValueError, match='2 pages with 1 different ids'):
        PageStore(tmp_path, pages)
    with pytest.raises(ValueError, match='line 2: page_id .* stands there twice'):
        PageStore.write(tmp_path / 'pages.jsonl', pages)
    (tmp_path / 'a.png').touch()
    (tmp_path / 'pages.jsonl').write_text(''.join(
        json.dumps(dataclasses.asdict(page)) + '\n' for page in pages))
    with pytest.raises(ValueError, match='line 2: page_id .* stands already in line 1'):
        PageStore.open(tmp_path / 'pages.jsonl')


def test_a_folder_from_macos_has_the_ids_of_any_other(tmp_path):
    (tmp_path / NFD).mkdir()
    for name in (f'{NFD}/1.png', f'{NFD}.png'):
        Image.new('RGB', (4, 3)).save(tmp_path / name)
    pages = scan_folder(tmp_path)
    assert {page.page_id for page in pages} == {f'{CAFE}/1', CAFE}
    assert CAFE in {page.document for page in pages}
    assert all((tmp_path / page.file).is_file() for page in pages)
