"""Killed at any point, an ingestion goes on to the same files, byte for byte."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vrag_jax.corpus.ingestion import folders
from vrag_jax.corpus.ingestion.folders import PageRecord
from vrag_jax.corpus.ingestion.ingest import ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.ingestion.pool import ReadingTask, WorkerPool, _Process
from vrag_jax.corpus.pages import PageStore
from vrag_jax.corpus.words import Word

PROGRAM = '''
import sys
from pathlib import Path
from vrag_jax.corpus.ingestion.ingest import ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
config = IngestConfig(dpi=300, workers=2, pages_per_task=1, ocr='never')
ingest([Path(sys.argv[1])], Path(sys.argv[2]), config, progress=False)
'''
SLOW = IngestConfig(dpi=300, workers=2, pages_per_task=1, ocr='never')


def images_in(out: Path) -> int:
    """Images of pages written so far, in folders that are final and in those that are not.

    `Path.glob` raises when a folder becomes final, and so another name, while it looks into it;
    `os.walk` passes over a folder that is gone.
    """
    return sum(name.endswith('.jpg')
               for _, _, names in os.walk(out / 'documents') for name in names)


def test_killed_again_and_again_it_ends_with_the_same_files(make_pdf, tmp_path, tree):
    for i in range(4):
        make_pdf(f'{i}.pdf', *(f'text {j} of {i}' for j in range(6)), size=(800, 800))
    source, out, whole = tmp_path / 'in', tmp_path / 'out', tmp_path / 'whole'
    ingest([source], whole, SLOW, progress=False)
    done = 0
    for goal in (2, 9, 17):
        process = subprocess.Popen([sys.executable, '-c', PROGRAM, str(source), str(out)])
        while (done := images_in(out)) < goal:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (out / 'pages.jsonl').exists()
    assert done < 24
    report = ingest([source], out, SLOW, progress=False)
    assert 0 < report.pages_read <= 24 - done + 2
    assert tree(out) == tree(whole)


def put_page(folder, index, image=b'image'):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{index + 1:04}.jpg').write_bytes(image)
    record = PageRecord(index + 1, index, f'{index + 1:04}.jpg', 3, 2, 'x', len(image), 'text')
    folders.write_page(folder, record, [Word('text', (0, 0, 1, 1))])


def test_a_folder_becomes_final_after_a_kill_between_any_two_of_its_steps(
        tmp_path, tree, monkeypatch):
    class Killed(BaseException):
        pass

    def build(folder):
        for index in range(3):
            put_page(folder, index)
        (folder / '0002.jpg.partial').write_bytes(b'half')

    build(tmp_path / 'a' / 'key.partial')
    folders.finish(tmp_path / 'a' / 'key.partial', 3, 'renderer')
    expected = tree(tmp_path / 'a')
    assert sorted(expected) == ['key/0001.jpg', 'key/0002.jpg', 'key/0003.jpg',
                                'key/document.json', 'key/words.jsonl']
    steps = 0
    while True:
        place = tmp_path / f'b{steps}'
        build(place / 'key.partial')
        left = steps

        def step(function):
            def run(*args, **kwargs):
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return function(*args, **kwargs)
            return run

        with monkeypatch.context() as patch:
            for owner, name in ((folders.os, 'replace'), (folders.Path, 'unlink'),
                                (folders.Path, 'write_text'), (folders.os, 'fsync')):
                patch.setattr(owner, name, step(getattr(owner, name)))
            try:
                folders.finish(place / 'key.partial', 3, 'renderer')
                break
            except Killed:
                pass
        if not (place / 'key').exists():  # What an ingestion looks for first.
            assert folders.missing_pages(place / 'key.partial', 3) == []
            folders.finish(place / 'key.partial', 3, 'renderer')
        assert tree(place) == expected
        steps += 1
    assert steps > 10 and tree(place) == expected


def test_pages_without_a_record_are_the_missing_ones(tmp_path):
    assert folders.missing_pages(tmp_path / 'none', 2) == [0, 1]
    put_page(tmp_path / 'key.partial', 1)
    (tmp_path / 'key.partial' / '0003.jpg').write_bytes(b'without a record')
    assert folders.missing_pages(tmp_path / 'key.partial', 3) == [0, 2]


def test_pages_of_a_folder_of_images_are_asked_for_with_their_own_files_alone(
        tmp_path, tree, monkeypatch):
    source, out = tmp_path / 'in', tmp_path / 'out'
    source.mkdir()
    for number in range(1, 41):
        Image.new('L', (8, 8), 6 * number).save(source / f'{number}.png')
    (source / '7.png').write_bytes(b'no image')
    requests = []
    start = _Process.start

    def noted(self, task):
        requests.append(task.request)
        start(self, task)

    monkeypatch.setattr(_Process, 'start', noted)
    config = IngestConfig(workers=2, pages_per_task=3, ocr='never')
    report = ingest([source], out, config, progress=False)
    assert report.pages == 39 and [file for file, _ in report.failed] == ['7.png']
    reads = [request for request in requests if request['task'] == 'read']
    assert len(reads) == 14
    assert all(len(request['document']['files']) == len(request['indices']) == len(
        request['stamps']) <= 3 for request in reads)
    store = PageStore.open(out / 'pages.jsonl')
    for page in store:
        assert np.asarray(store.image(page.page_id)).max() == 6 * page.page


@pytest.fixture
def inspection(make_pdf):
    """Tasks that inspect a number of PDFs."""
    def tasks(count):
        for i in range(count):
            file = make_pdf(f'{i}.pdf', 'x')
            yield ReadingTask({'task': 'inspect', 'document': {
                'name': str(i), 'kind': 'pdf', 'files': [str(file)], 'labels': ['x'],
                'numbers': []}}, i)
    return tasks


def test_a_document_that_ends_its_reader_costs_only_itself(inspection):
    with WorkerPool(IngestConfig(workers=1)) as pool:
        tasks, replies = inspection(4), {}

        def next_task():
            task = next(tasks, None)
            if task and task.key == 1:
                pool._workers[0].kill('')
            return task

        for key, reply in pool.run(next_task):
            replies[key] = reply
    assert replies[1] == {'error': 'ends its reader by SIGKILL'}
    assert [replies[i]['pages'] for i in (0, 2, 3)] == [1, 1, 1]


def test_a_document_that_takes_too_long_is_given_up(inspection):
    with WorkerPool(IngestConfig(workers=1, timeout_s=0.01)) as pool:
        tasks = inspection(2)  # A process takes longer to start.
        replies = dict(pool.run(lambda: next(tasks, None)))
    assert replies == {i: {'error': 'takes more than 0.01 s'} for i in (0, 1)}


def test_workers_end_with_the_process_that_has_started_them(make_pdf, tmp_path):
    make_pdf('a.pdf', *('text',) * 200, size=(3000, 3000))
    out = tmp_path / 'out'
    process = subprocess.Popen([sys.executable, '-c', PROGRAM, str(tmp_path / 'in'), str(out)])
    while not images_in(out):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    time.sleep(1.0)
    count = len(list(out.glob('documents/*/*')))
    time.sleep(1.0)
    assert len(list(out.glob('documents/*/*'))) == count < 400
