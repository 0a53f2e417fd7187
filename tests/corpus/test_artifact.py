"""Directories are replaced whole or not at all, and any change to them is named."""

import concurrent.futures
import json
import os
import shutil
import time

import numpy as np
import pytest

from vrag_jax.corpus import artifact
from vrag_jax.corpus.artifact import (
    ArtifactError,
    open_artifact,
    read_artifact,
    write_artifact,
)


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
    assert len(list((tmp_path / 'x').glob('[!.]*'))) == 2  # the manifest and one folder
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
    assert len(list(tmp_path.glob('[!.]*'))) == 2


def test_writers_take_turns(tmp_path):
    def slowly(folder):
        for i in range(20):
            (folder / f'{i}.txt').write_text(str(i))
            time.sleep(0.002)
        return {}

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: write_artifact(tmp_path, 'thing', slowly), range(8)))
    folder, _ = read_artifact(tmp_path, 'thing')
    assert list(tmp_path.glob('data-*')) == [folder] and len(list(folder.iterdir())) == 20


def test_an_interrupt_right_after_the_switch_leaves_the_new_version(tmp_path, monkeypatch):
    write(tmp_path, 'old')
    replace = os.replace

    def interrupted(*args):
        replace(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(artifact.os, 'replace', interrupted)
        write(tmp_path, 'new')
    assert content(tmp_path) == 'new'


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


def test_large_files_are_hashed_only_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, 'LARGE', 3)
    write(tmp_path, 'old')
    data_file(tmp_path).write_text('olf')
    read_artifact(tmp_path, 'thing')
    with pytest.raises(ArtifactError, match=r'a\.txt: has a wrong SHA-256'):
        read_artifact(tmp_path, 'thing', verify=True)
    data_file(tmp_path).write_text('older')
    with pytest.raises(ArtifactError, match=r'a\.txt: has 5 bytes, expected 3'):
        read_artifact(tmp_path, 'thing')
    edit_manifest(tmp_path, sizes={})  # As in manifests of before sizes were noted.
    with pytest.raises(ArtifactError, match=r'a\.txt: has a wrong SHA-256'):
        read_artifact(tmp_path, 'thing')


def test_linked_files_are_not_hashed_again(tmp_path, monkeypatch):
    write(tmp_path, 'old')
    hashed = []
    original = artifact.file_digest
    monkeypatch.setattr(artifact, 'file_digest',
                        lambda file: hashed.append(file.name) or original(file))
    old = data_file(tmp_path)

    def link(folder):
        os.link(old, folder / 'linked.txt')
        (folder / 'new.txt').write_text('new')
        return {}

    write_artifact(tmp_path, 'thing', link)
    assert hashed == ['new.txt'] and not old.exists()
    folder, _ = read_artifact(tmp_path, 'thing', verify=True)
    assert (folder / 'linked.txt').read_text() == 'old'


def test_a_version_that_comes_while_the_old_one_is_opened_is_opened_instead(tmp_path):
    write(tmp_path, 'old')
    seen = []

    def read(folder, fields):
        if not seen:
            write(tmp_path, 'newer')
            assert (folder / 'sub' / 'a.txt').exists()  # It is being opened.
            shutil.rmtree(folder)  # By a host that locks do not reach.
        seen.append((folder / 'sub' / 'a.txt').exists())
        return (folder / 'sub' / 'a.txt').read_text()

    assert open_artifact(tmp_path, 'thing', read) == 'newer' and seen == [False, True]

    def fail(folder, fields):
        raise ArtifactError('of no use')

    with pytest.raises(ArtifactError, match='of no use'):
        open_artifact(tmp_path, 'thing', fail)


def test_what_is_mapped_of_an_old_version_stays_readable(tmp_path):
    array = np.arange(1 << 16)

    def files(folder):
        np.save(folder / 'a.npy', array)
        return {}

    write_artifact(tmp_path, 'thing', files)
    mapped = open_artifact(tmp_path, 'thing', lambda folder, _: np.load(
        folder / 'a.npy', mmap_mode='r'))
    write(tmp_path, 'new')
    [old] = [file.parent for file in tmp_path.glob('data-*/a.npy')]
    shutil.rmtree(old)  # By a host that locks do not reach.
    np.testing.assert_array_equal(mapped, array)


def test_a_version_stays_as_long_as_what_was_opened_of_it(tmp_path):
    """Whoever maps files over a network file system must not find them gone."""
    write(tmp_path, 'version 1')
    [old] = tmp_path.glob('data-*')

    class Opened:
        def __init__(self, folder, _):
            self.folder = folder

    opened = open_artifact(tmp_path, 'thing', Opened)
    write(tmp_path, 'version 2')
    write(tmp_path, 'version 3')
    assert opened.folder == old and (old / 'sub' / 'a.txt').read_text() == 'version 1'
    assert len(list(tmp_path.glob('data-*'))) == 2
    del opened
    write(tmp_path, 'version 4')
    assert len(list(tmp_path.glob('data-*'))) == 1 and not list(tmp_path.glob('*.old'))
