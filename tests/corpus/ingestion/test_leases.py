"""Pages that are replaced while somebody has them open, in this process and in others."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vrag_jax.corpus.ingestion.ingest import delete_documents, ingest, remove_unused
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.leases import read_leased, retain, still_read
from vrag_jax.corpus.pages import PageStore

ROOT = Path(__file__).resolve().parents[3]
CONFIG = IngestConfig(workers=1, most_deleted=1.0, ocr='never')
# Opens the pages, says so, and reads all of them once it is told to.
READER = '''
import sys
from pathlib import Path
from vrag_jax.corpus.pages import PageStore
store = PageStore.open(Path(sys.argv[1]))
print('open', flush=True)
sys.stdin.readline()
print([store.image(page_id).size for page_id in store.ids] and 'read', flush=True)
sys.stdin.readline()
'''


@contextlib.contextmanager
def reader(manifest):
    process = subprocess.Popen(
        [sys.executable, '-c', READER, str(manifest)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    try:
        assert process.stdout.readline() == 'open\n'
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def corpus(make_pdf, tmp_path):
    """Folder of pages, and a function that replaces those of `a.pdf` by others of a text."""
    make_pdf('b.pdf', 'this one stays as it is')

    def update(text):
        make_pdf('a.pdf', *(f'{text} {n}' for n in range(3)))
        ingest([tmp_path / 'in'], tmp_path / 'out', CONFIG, progress=False)
        return tmp_path / 'out'

    update('first')
    return tmp_path / 'out', update


def folders(out):
    return {folder.name for folder in (out / 'documents').iterdir()}


def test_a_process_that_has_pages_open_finds_their_images(corpus):
    out, update = corpus
    old = folders(out)
    with reader(out / 'pages.jsonl') as process:
        update('second')
        update('third')
        assert old <= folders(out) and len(folders(out)) == 3  # 'second' was open for nobody.
        process.stdin.write('go\n')
        process.stdin.flush()
        assert process.stdout.readline() == 'read\n'
    # It was killed, which ends its lease; the next ingestion deletes what was left.
    update('third')
    assert len(folders(out)) == 2 and not list(out.glob('*.old'))


def test_deleted_documents_stay_for_those_who_have_them_open(corpus):
    out, _ = corpus
    store = PageStore.open(out / 'pages.jsonl')
    delete_documents(out, ['a'])
    assert store.image('a_1').size == (400, 200) and len(folders(out)) == 2
    del store
    remove_unused(out)
    assert len(folders(out)) == 1 and not list(out.glob('*.old'))


@pytest.mark.slow
def test_no_store_misses_a_file_whenever_it_was_opened(corpus):
    out, update = corpus
    done, faults = threading.Event(), []

    def read():
        count = 0
        while not done.is_set() or count < 3:
            try:
                store = PageStore.open(out / 'pages.jsonl')
                held = [store.image(page_id) for page_id in store.ids]
                assert len(held) == 4
            except Exception as error:
                faults.append(error)
            count += 1

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for n in range(12):
            update(f'version {n}')
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert faults == []
    update('last')
    assert len(folders(out)) == 2


def test_a_reader_that_comes_too_late_for_a_version_gets_the_next(tmp_path):
    file = tmp_path / 'manifest'
    file.write_text('first')
    text, lease = read_leased(file)
    for number in range(3):
        retain(file)
        (tmp_path / 'new').write_text(f'{number}')
        (tmp_path / 'new').replace(file)
    assert text == 'first' and still_read(file) == ['first']  # In between nobody was there.
    assert read_leased(file)[0] == '2'
    lease.release()
    assert still_read(file) == [] and [p.name for p in tmp_path.iterdir()] == ['manifest']


def test_a_writer_that_was_killed_before_it_replaced_the_manifest_harms_nobody(corpus):
    out, update = corpus
    store = PageStore.open(out / 'pages.jsonl')
    retain(out / 'pages.jsonl')
    remove_unused(out)
    assert not list(out.glob('*.old'))
    update('second')
    assert store.image('a_1').size == (400, 200)


def test_manifests_of_ones_own_are_not_locked(tmp_path, make_pdf, corpus):
    out, _ = corpus
    store = PageStore.open(out / 'pages.jsonl')
    assert store.lease is not None
    own = tmp_path / 'own'
    own.mkdir()
    (own / 'documents').symlink_to(out / 'documents')
    PageStore.write(own / 'pages.jsonl', list(store))
    assert PageStore.open(own / 'pages.jsonl').lease is None
