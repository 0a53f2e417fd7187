"""A corpus is embedded once, whatever happens in between, and never wrongly unnoticed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.embedders.fake import WordEmbedder
from tests.parallel.processes import Processes
from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.indexing.embed_corpus import EmbeddingError, content_keys, embed_corpus
from vrag_jax.indexing.page_vectors import PageVectors

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [' '.join(f'word{n * 7 % 11}' for n in range(page % 4 + 1)) + f' page{page}'
         for page in range(23)]


def make_store(folder, texts):
    """A store of one-coloured pages; ids are p0, p1, ..."""
    folder.mkdir(exist_ok=True)
    pages = []
    for number, text in enumerate(texts):
        Image.new('RGB', (8, 6), (number, 0, 0)).save(folder / f'{number}.png')
        pages.append(Page(f'p{number}', 'doc', number + 1, f'{number}.png', 8, 6, text))
    PageStore.write(folder / 'pages.jsonl', pages)
    return PageStore.open(folder / 'pages.jsonl')


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / 'store', TEXTS)


def check(vectors, texts, embedder):
    """The vectors are those of the texts, in order."""
    assert len(vectors) == len(texts)
    for number, expected in enumerate(embedder.embed_queries(texts)):
        np.testing.assert_allclose(np.asarray(vectors[number], np.float32), expected, atol=4e-3)


@pytest.mark.parametrize('multi_vector', [True, False])
def test_all_pages_in_the_order_of_the_store(multi_vector, store, tmp_path):
    embedder, said = WordEmbedder(multi_vector), []
    vectors = embed_corpus(embedder, store, TEXTS, tmp_path / 'out', shard_pages=5,
                           progress=lambda *pages: said.append(pages))
    check(vectors, TEXTS, embedder)
    assert vectors.ids == store.ids and vectors.fingerprint == 'words' and vectors.dims == 8
    assert all(isinstance(file, np.memmap) for file in vectors.files)
    assert vectors.dtype == ('bfloat16' if multi_vector else 'float32')
    assert said == [(done, 23) for done in (5, 10, 15, 20, 23)]
    assert [file.name for file in (tmp_path / 'out').iterdir() if file.name == 'shards'] == []


def test_what_is_there_is_not_embedded_again(store, tmp_path):
    embed_corpus(WordEmbedder(), store, TEXTS, tmp_path / 'out', shard_pages=5)
    again = WordEmbedder()
    check(embed_corpus(again, store, TEXTS, tmp_path / 'out'), TEXTS, WordEmbedder())
    assert again.embedded == []


def test_only_pages_that_are_new_or_changed_are_embedded(store, tmp_path):
    embed_corpus(WordEmbedder(), store, TEXTS, tmp_path / 'out')
    texts = [*TEXTS[:3], 'something else', *TEXTS[10:], 'one more']  # Replaced, deleted, added.
    changed, embedder = make_store(tmp_path / 'changed', texts), WordEmbedder()
    check(embed_corpus(embedder, changed, texts, tmp_path / 'out'), texts, WordEmbedder())
    assert embedder.embedded == ['p3', f'p{len(texts) - 1}']


def test_copies_of_a_page_are_embedded_once(tmp_path):
    texts = ['same text', 'other', 'same text', '', '']
    embedder = WordEmbedder()
    vectors = embed_corpus(
        embedder, make_store(tmp_path / 's', texts), texts, tmp_path / 'out')
    check(vectors, texts, WordEmbedder())
    assert embedder.embedded == ['p0', 'p1', 'p3']


def test_another_embedder_starts_anew(store, tmp_path):
    embed_corpus(WordEmbedder(), store, TEXTS, tmp_path / 'out')
    other = WordEmbedder(fingerprint='other')
    assert embed_corpus(other, store, TEXTS, tmp_path / 'out').fingerprint == 'other'
    assert len(other.embedded) == 23


def test_a_damaged_shard_is_embedded_again(store, tmp_path):
    def stop(done, total):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_corpus(WordEmbedder(), store, TEXTS, tmp_path / 'out', shard_pages=5, progress=stop)
    shards = sorted((tmp_path / 'out' / 'shards').iterdir())
    assert len(shards) == 2
    data = bytearray(shards[0].read_bytes())
    data[len(data) // 2] ^= 0xFF
    shards[0].write_bytes(data)
    embedder = WordEmbedder()
    check(embed_corpus(embedder, store, TEXTS, tmp_path / 'out', shard_pages=5), TEXTS,
          WordEmbedder())
    assert len(embedder.embedded) == 23 - 5


PROGRAM = """
import sys
from pathlib import Path
from tests.embedders.fake import WordEmbedder
from tests.indexing.test_embed_corpus import TEXTS
from vrag_jax.indexing.embed_corpus import embed_corpus
from vrag_jax.corpus.pages import PageStore

folder = Path(sys.argv[1])
embedder = WordEmbedder(seconds=float(sys.argv[2]))
embed_corpus(embedder, PageStore.open(folder / 'store' / 'pages.jsonl'), TEXTS, folder / 'out',
             shard_pages=2, progress=lambda *pages: print(pages, flush=True))
print(len(embedder.embedded))
"""


def test_killed_three_times_and_resumed(store, tmp_path):
    command = [sys.executable, '-c', PROGRAM, str(tmp_path)]
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    shards = tmp_path / 'out' / 'shards'
    for _ in range(3):
        before = len(list(shards.glob('*.npz'))) if shards.exists() else 0
        process = subprocess.Popen([*command, '0.3'], cwd=ROOT, env=environment,
                                   stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not shards.exists() or len(list(shards.glob('*.npz'))) < before + 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = len(list(shards.glob('*.npz')))
    assert 6 <= kept < 12
    done = subprocess.run([*command, '0'], cwd=ROOT, env=environment, text=True, check=True,
                          capture_output=True)
    assert int(done.stdout.splitlines()[-1]) == 23 - 2 * kept
    check(PageVectors.open(tmp_path / 'out'), TEXTS, WordEmbedder())
    one_go = embed_corpus(WordEmbedder(), store, TEXTS, tmp_path / 'one_go')
    assert PageVectors.open(tmp_path / 'out').digests == one_go.digests


TWO_PROCESSES = """
import json, os
from pathlib import Path
import jax
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(os.environ['JAX_COORDINATOR_ADDRESS'], 2,
                           int(os.environ['JAX_PROCESS_ID']))
from tests.embedders.fake import WordEmbedder
from tests.indexing.test_embed_corpus import TEXTS
from vrag_jax.indexing.embed_corpus import embed_corpus
from vrag_jax.corpus.pages import PageStore

folder = Path(os.environ['FOLDER'])
store = PageStore.open(folder / 'store' / 'pages.jsonl')
embedder = WordEmbedder()
vectors = embed_corpus(embedder, store, TEXTS, folder / 'out', shard_pages=5)

def wrong(page, rows):
    return rows * float('nan') if page.page_id == 'p7' else rows

try:
    embed_corpus(WordEmbedder(fingerprint='x', wrong=wrong), store, TEXTS, folder / 'wrong',
                 shard_pages=5)
    message = None
except ValueError as error:
    message = str(error)
print(json.dumps([embedder.embedded, len(vectors), message]))
"""


def test_two_processes_embed_a_share_each_and_fail_together(store, tmp_path):
    ended = Processes(tmp_path / 'run', TWO_PROCESSES,
                      environment={'FOLDER': str(tmp_path)}).wait()
    assert [process.status for process in ended.values()] == [0, 0], ended
    said = [json.loads(process.stdout.splitlines()[-1]) for process in ended.values()]
    shares = [embedded for embedded, _, _ in said]
    assert min(map(len, shares)) >= 8
    assert sorted(sum(shares, [])) == sorted(store.ids)
    assert [count for _, count, _ in said] == [23, 23]
    assert all("page 'p7': NaN" in message for _, _, message in said)
    check(PageVectors.open(tmp_path / 'out'), TEXTS, WordEmbedder())


@pytest.mark.parametrize(('wrong', 'message'), [
    (lambda rows: rows * np.nan, "page 'p3': NaN"),
    (lambda rows: rows * 0, "page 'p3': a vector of length 0"),
    (lambda rows: rows * 1.1, "page 'p3': a vector of length 1.1"),
    (lambda rows: rows[:, :-1], r"page 'p3': vectors of shape \(5, 7\), expected \(T, 8\)"),
    (lambda rows: rows[:0], "page 'p3': vectors of shape"),
    (lambda rows: rows[0], "page 'p3': vectors of shape"),
])
def test_vectors_that_cannot_be_right_are_refused(wrong, message, store, tmp_path):
    embedder = WordEmbedder(wrong=lambda page, rows: wrong(rows) if page.page_id == 'p3' else rows)
    with pytest.raises(EmbeddingError, match=message):
        embed_corpus(embedder, store, TEXTS, tmp_path / 'out')
    assert not (tmp_path / 'out' / 'manifest.json').exists()


def test_several_vectors_of_a_single_vector_embedder_are_refused(store, tmp_path):
    embedder = WordEmbedder(multi_vector=False, wrong=lambda page, rows: np.repeat(rows, 2, 0))
    with pytest.raises(EmbeddingError, match=r'expected \(1, 8\)'):
        embed_corpus(embedder, store, TEXTS, tmp_path / 'out')


def test_one_vector_for_all_pages_is_refused(store, tmp_path):
    stuck = WordEmbedder().embed_queries(['stuck'])[0]
    with pytest.raises(ValueError, match="12 or more of 23 pages .* 'p0' and 'p1'"):
        embed_corpus(WordEmbedder(wrong=lambda page, rows: stuck), store, TEXTS,
                     tmp_path / 'out')
    assert not (tmp_path / 'out' / 'manifest.json').exists()


def test_a_few_pages_of_equal_vectors_are_a_warning(store, tmp_path, caplog):
    blank = WordEmbedder().embed_queries(['blank'])[0]
    embedder = WordEmbedder(
        wrong=lambda page, rows: blank if page.page_id in ('p3', 'p5', 'p9') else rows)
    vectors = embed_corpus(embedder, store, TEXTS, tmp_path / 'out')
    assert len(vectors) == 23
    [record] = caplog.records
    assert record.getMessage() == (
        'these pages differ, but words has the same vectors for them: p3, p5, p9')
    caplog.clear()
    embed_corpus(embedder, store, TEXTS, tmp_path / 'out')  # It was said.
    assert not caplog.records


def test_pages_that_look_the_same_to_the_model_may_have_equal_vectors(tmp_path):
    texts = ['a blank', 'a  blank', 'another']  # Other bytes, the same words.
    embedder = WordEmbedder()
    embedder.input_digest = lambda page: ' '.join(page.text.split())
    assert len(embed_corpus(embedder, make_store(tmp_path / 's', texts), texts,
                            tmp_path / 'out')) == 3


def test_keys_follow_what_is_read(store):
    image_keys = content_keys('image', store, TEXTS)
    assert len(set(image_keys)) == 23
    assert image_keys == content_keys('image', store, ['other'] * 23)
    assert len(set(content_keys('text', store, ['other'] * 23))) == 1


def test_one_text_a_page(store, tmp_path):
    with pytest.raises(ValueError, match='22 texts for 23 pages'):
        embed_corpus(WordEmbedder(), store, TEXTS[1:], tmp_path / 'out')
