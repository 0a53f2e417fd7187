"""Folders become documents by name; numbers sort by value; clashes are told."""

import os
from pathlib import Path

import pytest

from vrag_jax.ingestion.sources import Document, find_documents
from vrag_jax.retrieval.numbered_names import natural_key


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
    documents, problems, _ = find_documents(sources or [folder], images, exclude)
    return {d.name: (d.kind, d.labels, d.numbers) for d in documents}, problems


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
    documents, problems, unlisted = find_documents([tmp_path], 'folder', Path('/nowhere'))
    assert [document.name for document in documents] == ['a/x', 'c/z']
    assert problems == [('a/b', 'cannot be listed: Permission denied')] and unlisted == ['a/b']


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
    assert found(None, sources=[*sources, Path('other/a.pdf')])[1] == [
        ('a.pdf', "the document name 'a' is taken by a.pdf")]


def test_a_part_of_images_has_their_files_and_a_pdf_has_one():
    images = Document('s', 'images', ('/1', '/2', '/5'), ('1', '2', '5'), (1, 2, 5))
    assert images.part([2, 0]) == Document('s', 'images', ('/5', '/1'), ('5', '1'), (5, 1))
    pdf = Document('a', 'pdf', ('/a.pdf',), ('a.pdf',))
    assert pdf.part([3]) == pdf
