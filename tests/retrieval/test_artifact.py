"""Directories are replaced whole or not at all, and any change to them is named."""

import json
import shutil

import pytest

from vrag_jax.retrieval.artifact import ArtifactError, read_artifact, write_artifact


def write(directory, content, kind='thing'):
    def files(folder):
        (folder / 'sub').mkdir()
        (folder / 'sub' / 'a.txt').write_text(content)
        return {'length': len(content)}
    write_artifact(directory, kind, files)


def content(directory):
    folder, fields = read_artifact(directory, 'thing')
    text = (folder / 'sub' / 'a.txt').read_text()
    assert fields == {'length': len(text)}
    return text


def test_the_new_version_replaces_the_old_one(tmp_path):
    for text in ('first', 'second'):
        write(tmp_path / 'x', text)
        assert content(tmp_path / 'x') == text
    assert len(list((tmp_path / 'x').iterdir())) == 2  # the manifest and one folder
    shutil.move(tmp_path / 'x', tmp_path / 'y')
    assert content(tmp_path / 'y') == 'second'


def test_a_failed_write_leaves_the_old_version(tmp_path):
    write(tmp_path, 'old')

    def fail(folder):
        (folder / 'half.txt').write_text('half')
        raise RuntimeError('disk full')

    with pytest.raises(RuntimeError, match='disk full'):
        write_artifact(tmp_path, 'thing', fail)
    assert content(tmp_path) == 'old'
    assert len(list(tmp_path.iterdir())) == 2


def test_remains_of_a_killed_write_do_not_matter_and_go_with_the_next(tmp_path):
    write(tmp_path, 'old')
    (tmp_path / 'data-0').mkdir()
    (tmp_path / 'data-0' / 'half.txt').write_text('half')
    assert content(tmp_path) == 'old'
    write(tmp_path, 'new')
    assert content(tmp_path) == 'new' and not (tmp_path / 'data-0').exists()


def data_file(directory):
    [file] = directory.glob('data-*/sub/a.txt')
    return file


def edit_manifest(directory, **changes):
    manifest = json.loads((directory / 'manifest.json').read_text())
    (directory / 'manifest.json').write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize('damage, message', [
    (lambda d: data_file(d).write_text('olf'), r'a\.txt: has a wrong SHA-256'),
    (lambda d: data_file(d).write_text('ol'), r'a\.txt: has a wrong SHA-256'),
    (lambda d: data_file(d).unlink(), r'a\.txt: is missing'),
    (lambda d: (data_file(d).parent / 'b.pkl').touch(), r'b\.pkl: is not in the manifest'),
    (lambda d: edit_manifest(d, version=99), 'expected a thing of version 1, got a thing of '
                                             'version 99'),
    (lambda d: edit_manifest(d, kind='other'), 'got a other of version 1'),
    (lambda d: edit_manifest(d, data='../x'), 'is not in'),
    (lambda d: (d / 'manifest.json').write_text('{"kind": '), r'manifest\.json: corrupt'),
    (lambda d: (d / 'manifest.json').write_text('{}'), r'manifest\.json: corrupt'),
], ids=['changed', 'truncated', 'missing', 'added', 'version', 'kind', 'outside', 'cut', 'empty'])
def test_any_damage_is_named(tmp_path, damage, message):
    write(tmp_path, 'old')
    damage(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        read_artifact(tmp_path, 'thing')


def test_nothing_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no thing'):
        read_artifact(tmp_path / 'none', 'thing')
