"""Folders become documents by name; numbers sort by value; clashes are told."""

import os
from pathlib import Path

import pytest

from vrag_jax.corpus.ingestion.sources import Document, find_documents, source_names
from vrag_jax.corpus.numbered_names import natural_key


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def deny(monkeypatch, method, folder):
    """Lets a method of `Path` fail for a folder: tests may run as one who may do all."""
    real = getattr(Path, method)

    def denying(path):
        if path == folder:
            raise PermissionError(13, 'Permission denied', str(path))
        return real(path)

    monkeypatch.setattr(Path, method, denying)


def found(folder, images='folder', exclude=Path('/nowhere'), sources=None):
    found = find_documents(sources or [folder], images, exclude)
    return {d.name: (d.kind, d.labels, d.numbers) for d in found.documents}, found.problems


def test_files_of_a_folder_become_documents_in_the_order_of_their_names(tmp_path):
    touch(tmp_path, 'b.PDF', 'a/x.pdf', 'scan/10.png', 'scan/2.jpg', 'scan/notes.txt', 'a/fax.tif',
          '.hidden.pdf', '.git/c.pdf', 'top.webp')
    documents, problems = found(tmp_path)
    assert list(documents.items()) == [
        ('a/fax', ('frames', ('a/fax.tif',), ())),
        ('a/x', ('pdf', ('a/x.pdf',), ())),
        ('b', ('pdf', ('b.PDF',), ())),
        ('scan', ('images', ('scan/2.jpg', 'scan/10.png'), (1, 2))),
        (tmp_path.name, ('images', ('top.webp',), (1,)))]
    assert problems == []


def test_images_can_be_documents_or_numbered_pages(tmp_path):
    touch(tmp_path, 'r_10.png', 'r_9.png', 'x/r_1.png', 'cover.png', '_1.png', 'z_0.png')
    assert set(found(tmp_path, 'file')[0]) == {'r_10', 'r_9', 'x/r_1', 'cover', '_1', 'z_0'}
    documents, problems = found(tmp_path, 'numbered')
    assert documents['r'] == ('images', ('r_9.png', 'r_10.png'), (9, 10))
    assert documents['x/r'] == ('images', ('x/r_1.png',), (1,))
    assert {name for name, value in documents.items() if value[2] == (1,)} == {
        'x/r', 'cover', '_1', 'z_0'}
    assert problems == []


def test_what_would_have_the_same_name_is_told(tmp_path):
    touch(tmp_path, 'a.pdf', 'a/1.png', 'r_1.png', 'r_01.png')
    documents, problems = found(tmp_path)
    assert documents['a'] == ('pdf', ('a.pdf',), ())
    assert problems == [('a', "the document name 'a' is taken by a.pdf")]
    assert ('r_1.png', "page 1 of 'r' is taken by r_01.png") in found(tmp_path, 'numbered')[1]


def test_sources_are_files_and_folders_without_the_index_itself(tmp_path):
    touch(tmp_path, 'in/a.pdf', 'in/index/pages/1.png', 'b.png', 'c.txt')
    documents, _ = found(tmp_path, sources=[tmp_path / 'in', tmp_path / 'b.png'],
                         exclude=tmp_path / 'in' / 'index')
    assert set(documents) == {'a', 'b'}
    with pytest.raises(FileNotFoundError, match='none'):
        found(tmp_path, sources=[tmp_path / 'none'])
    with pytest.raises(ValueError, match='neither a PDF nor an image'):
        found(tmp_path, sources=[tmp_path / 'c.txt'])


def test_links_that_lead_back_end_and_names_that_are_no_text_are_told(tmp_path):
    touch(tmp_path, 'a/x.pdf', 'elsewhere/y.pdf', 'a/' + os.fsdecode(b'\xff.pdf'))
    (tmp_path / 'a' / 'back').symlink_to(tmp_path / 'a')
    (tmp_path / 'a' / 'link').symlink_to(tmp_path / 'elsewhere')
    documents, problems = found(tmp_path / 'a')
    assert set(documents) == {'x', 'link/y'}
    assert problems == [('?.pdf', 'its name is not UTF-8')]


@pytest.mark.parametrize('method', ['iterdir', 'is_dir'])
def test_a_folder_that_cannot_be_listed_costs_no_other(tmp_path, monkeypatch, method):
    touch(tmp_path, 'a/x.pdf', 'a/b/y.pdf', 'c/z.pdf')
    deny(monkeypatch, method, tmp_path / 'a' / 'b')
    found = find_documents([tmp_path], 'folder', Path('/nowhere'))
    assert [document.name for document in found.documents] == ['a/x', 'c/z']
    assert found.problems == [('a/b', 'cannot be listed: Permission denied')]
    assert found.unlisted == ['a/b']


def test_a_source_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path, 'a/x.pdf', 'c/z.pdf')
    deny(monkeypatch, 'iterdir', tmp_path / 'a')
    with pytest.raises(PermissionError, match='/a'):
        find_documents([tmp_path / 'c', tmp_path / 'a'], 'folder', Path('/nowhere'))


def test_numbers_in_names_sort_by_value():
    names = ['p10', 'p2', 'p02', 'p', 'a1b2', 'a1b10', '3', '12', 'p²']
    assert sorted(names, key=natural_key) == [
        '3', '12', 'a1b2', 'a1b10', 'p', 'p02', 'p2', 'p10', 'p²']


@pytest.mark.parametrize('name, kind, label, of_metadata, of_messages', [
    ('a', 'pdf', 'a.pdf', 'a.pdf', 'a.pdf'),
    ('s', 'images', 's/1.png', 's', 's'),
    ('s/1', 'images', 's/1.png', 's', 's/1.png'),
    ('photos', 'images', '1.png', '', 'photos'),
    ('s/r', 'images', 's/r_1.png', 's', 's/r')])
def test_metadata_and_messages_name_the_file_or_the_folder(
        name, kind, label, of_metadata, of_messages):
    document = Document(name, kind, (f'/x/{label}',), (label,), (1,) if kind == 'images' else ())
    assert (document.label, document.title) == (of_metadata, of_messages)


def test_a_file_that_lies_in_two_sources_goes_in_once(tmp_path, monkeypatch):
    touch(tmp_path, 'in/a.pdf', 'in/b.png', 'other/a.pdf')
    monkeypatch.chdir(tmp_path)
    sources = [tmp_path / 'in', Path('in/a.pdf'), Path('in')]
    assert found(None, 'file', sources=sources) == (
        {'a': ('pdf', ('a.pdf',), ()), 'b': ('images', ('b.png',), (1,))}, [])
    documents, problems = found(None, 'file', sources=[*sources, Path('other/a.pdf')])
    assert (set(documents), problems) == ({'a', 'b', 'other/a'}, [])


def names_of(*sources, images='folder'):
    listed = find_documents(sources, images, Path('/nowhere'))
    assert listed.problems == []
    return {document.name: document.files for document in listed.documents}


def test_a_second_document_of_a_name_is_named_by_its_source(tmp_path):
    touch(tmp_path, 'acme/annual.pdf', 'acme/plan.pdf', 'beta/annual.pdf', 'beta/x/annual.pdf',
          'beta/only.pdf')
    acme, beta = tmp_path / 'acme', tmp_path / 'beta'
    alone, both = names_of(acme), names_of(acme, beta)
    assert set(both) == {'annual', 'plan', 'beta/annual', 'x/annual', 'only'}
    assert both['beta/annual'] == (str(beta / 'annual.pdf'),)
    assert alone.items() <= both.items()  # A source that is added changes no name of before.
    turned = names_of(beta, acme)
    assert set(turned) == {'annual', 'plan', 'acme/annual', 'x/annual', 'only'}


def test_sources_of_one_name_are_told_apart_by_more_of_their_paths(tmp_path):
    touch(tmp_path, 'x/r/a.pdf', 'y/r/a.pdf', 'z/r/a.pdf', 'x/r/r/a.pdf', 'p/s/1.png', 'q/s/1.png')
    sources = [tmp_path / f'{name}/r' for name in 'xyz']
    assert names_of(*sources) == {
        'a': (str(tmp_path / 'x/r/a.pdf'),), 'r/a': (str(tmp_path / 'x/r/r/a.pdf'),),
        'y/r/a': (str(tmp_path / 'y/r/a.pdf'),), 'z/r/a': (str(tmp_path / 'z/r/a.pdf'),)}
    # Folders of images that are sources are named as they are.
    assert set(names_of(tmp_path / 'p/s', tmp_path / 'q/s')) == {'s', 'q/s'}
    assert set(names_of(tmp_path / 'p/s/1.png', tmp_path / 'q/s/1.png')) == {'1', 's/1'}
    assert source_names([*sources, tmp_path / 'p']) == ['x/r', 'y/r', 'z/r', 'p']


def test_a_name_of_a_source_is_taken_by_none_that_it_has(tmp_path):
    touch(tmp_path, 'a/x.pdf', 'b/x.pdf', 'b/b/x.pdf', 'b/b/y.pdf')
    names = names_of(tmp_path / 'a', tmp_path / 'b')
    assert names['b/x'] == (str(tmp_path / 'b/b/x.pdf'),) and len(names) == 4
    assert names_of(tmp_path / 'a', tmp_path / 'b', tmp_path / 'b' / 'b') == names


def test_names_are_of_one_form_of_unicode(tmp_path):
    cafe, nfd = 'caf\u00e9', 'cafe\u0301'
    touch(tmp_path, f'one/{nfd}/{nfd}.pdf', f'one/{nfd} scan/1.png', f'two/{cafe}/{cafe}.pdf')
    listed = find_documents([tmp_path / 'one', tmp_path / 'two'], 'folder', Path('/nowhere'))
    assert [document.name for document in listed.documents] == [
        f'{cafe} scan', f'{cafe}/{cafe}', f'two/{cafe}/{cafe}']
    assert listed.documents[1].files == (str(tmp_path / f'one/{nfd}/{nfd}.pdf'),)
    assert listed.labels(2)[0] == {f'{cafe}/{cafe}.pdf', f'{cafe} scan', f'{cafe} scan/1.png'}
    # A source may be typed in the other form than that in which it is stored.
    assert set(names_of(tmp_path / 'one' / cafe, tmp_path / 'two' / nfd / f'{nfd}.pdf')) == {
        cafe, f'{cafe}/{cafe}'}
    touch(tmp_path, f'one/{cafe}/{cafe}.pdf')
    problems = find_documents([tmp_path / 'one'], 'folder', Path('/nowhere')).problems
    assert problems == [(f'{cafe}/{cafe}.pdf', f"the document name '{cafe}/{cafe}' is taken by "
                                               f'{cafe}/{cafe}.pdf')]


def test_problems_say_of_which_source_they_are(tmp_path, monkeypatch):
    touch(tmp_path, 'one/a.pdf', 'one/a/1.png', 'two/b.pdf', 'two/x/c.pdf')
    deny(monkeypatch, 'iterdir', tmp_path / 'two' / 'x')
    assert found(None, sources=[tmp_path / 'one', tmp_path / 'two'])[1] == [
        ('one/a', "the document name 'a' is taken by one/a.pdf"),
        ('two/x', 'cannot be listed: Permission denied')]


def test_what_is_not_read_is_counted_by_its_ending(tmp_path):
    touch(tmp_path, 'a.pdf', 'b.docx', 'x/c.DOCX', 'x/d.heic', 'x/README', 'metadata.csv', '.e.txt',
          'x/metadata.csv', 'f.gif', 'g.bmp')
    listed = find_documents([tmp_path, tmp_path / 'x'], 'file', Path('/nowhere'))
    assert listed.not_read == {'.docx': 2, '.heic': 1, '': 1, '.csv': 1}
    assert [document.name for document in listed.documents] == ['a', 'f', 'g']


def test_a_part_of_images_has_their_files_and_a_pdf_has_one():
    images = Document('s', 'images', ('/1', '/2', '/5'), ('1', '2', '5'), (1, 2, 5))
    assert images.part([2, 0]) == Document('s', 'images', ('/5', '/1'), ('5', '1'), (5, 1))
    pdf = Document('a', 'pdf', ('/a.pdf',), ('a.pdf',))
    assert pdf.part([3]) == pdf
