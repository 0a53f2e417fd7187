"""The task `serve_index` as a user starts it, and how it ends."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.embedders.fake import WordEmbedder
from tests.serving.conftest import PAGES
from vrag_jax.corpus.pages import PageStore
from vrag_jax.embedders.registry import EmbedderConfig
from vrag_jax.indexing.build import open_engine
from vrag_jax.indexing.retrieval_config import RetrievalConfig
from vrag_jax.serving.server import listen
from vrag_jax.serving.service_config import ServiceConfig

ROOT = Path(__file__).resolve().parents[2]


def start(workdir, *overrides):
    environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    return subprocess.Popen(
        [sys.executable, '-m', 'vrag_jax.main', '--config=configs/serve_index.py',
         f'--workdir={workdir}', *overrides],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_the_task_serves_until_it_is_told_to_stop(make_corpus, tmp_path, number):
    folder = make_corpus()
    process = start(tmp_path / 'run', '--config.data.source=files', '--config.serving.port=0',
                    f'--config.data.manifest={folder / "pages.jsonl"}')
    try:
        line = next(line for line in process.stdout if line.startswith('serving'))
        pages, url = re.fullmatch(r'serving (\d+) pages on (http://127\.0\.0\.1:\d+)\n',
                                  line).groups()
        store = PageStore.open(folder / 'pages.jsonl')
        assert int(pages) == len(store)
        [hits] = httpx.get(f'{url}/search', params={'queries': '网络 降价'}).json()
        assert hits[0]['image_file'] == str(store.path('云/网络 1').resolve())
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
        assert process.stdout.read().endswith('stopped\n')
    finally:
        process.kill()
        process.stdout.close()


def test_a_signal_at_the_very_start_is_not_lost(make_corpus, tmp_path):
    folder = make_corpus()
    process = start(tmp_path / 'run', '--config.data.source=files', '--config.serving.port=0',
                    f'--config.data.manifest={folder / "pages.jsonl"}')
    try:
        next(line for line in process.stdout if line.startswith('serving'))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.parametrize('overrides,message', [
    (('--config.data.source=files',), 'config.data.manifest: not given'),
    (('--config.data.manifest=pages.jsonl',), 'config.data: manifest is for pages of files'),
    (('--config.serving.port=70000',), 'config.serving: port must be in [0, 65535], got 70000'),
    (('--config.serving.limits.k=0',), 'config.serving.limits: k must be positive, got 0'),
    (('--config.retrieval.index_dir=gone',), 'config.retrieval.index_dir: gone is no folder'),
    (("--config.retrieval.hybrid.weights=(1.0,2.0)",),
     "config.retrieval: hybrid.weights: 2 weights for 1 retrievers ('ngram',)"),
])
def test_a_config_that_cannot_work_is_refused_with_the_field(tmp_path, overrides, message):
    process = start(tmp_path / 'run', *overrides)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and message in output and 'Traceback' not in output


def refused(workdir, folder, *overrides):
    """The last line of a service that ends, and leaves index and vectors as they were."""
    def files():  # Every task leaves its config.
        return {p: p.stat().st_mtime_ns for p in workdir.rglob('*')
                if p.is_file() and p.name != 'config.json'}

    before = files()
    process = start(workdir, '--config.data.source=files',
                    f'--config.data.manifest={folder / "pages.jsonl"}', *overrides)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1 and 'Traceback' not in output
    assert files() == before
    [*_, line] = output.splitlines()
    assert line.startswith('serve: ')
    return line


def test_an_address_that_is_taken_is_told_in_one_line(make_corpus):
    folder = make_corpus()
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert 'cannot listen on' in refused(folder, folder, f'--config.serving.port={port}')


def test_an_index_that_is_not_as_configured_is_left_alone(make_corpus, tmp_path):
    folder = make_corpus()  # Its index is of n-grams.
    assert 'have other settings' in refused(
        folder, folder, "--config.retrieval.retrievers=('bm25',)")
    changed = make_corpus('changed', [(*PAGES[0][:3], 'other words', {}), *PAGES[1:]])
    shutil.copytree(folder / 'index', tmp_path / 'run' / 'index')
    line = refused(tmp_path / 'run', changed)
    assert "the text of 'report_1' and 0 more has changed" in line and 'build_index' in line
    [file] = (folder / 'index').glob('data-*/encoder/ngram.npz')
    file.write_bytes(file.read_bytes()[:-1])
    assert 'has a wrong SHA-256 checksum' in refused(folder, folder)


def test_an_index_of_embedders_that_are_not_configured_is_left_alone(make_corpus, tmp_path):
    folder = make_corpus()
    config = RetrievalConfig(retrievers=('ngram', 'words'), embedders={'words': EmbedderConfig()})
    open_engine(config, PageStore.open(folder / 'pages.jsonl'), tmp_path / 'run',
                {'words': WordEmbedder()})
    line = refused(tmp_path / 'run', folder)
    assert 'made by embedder words' in line and 'given: none' in line
    manifest = json.loads((tmp_path / 'run' / 'index' / 'manifest.json').read_text())
    assert manifest['fields']['kind'] == 'hybrid'


def test_only_this_machine_is_listened_to_by_default():
    with listen(ServiceConfig(port=0)) as listener:
        assert listener.getsockname()[0] == '127.0.0.1'


def test_an_address_that_is_taken_is_named():
    with listen(ServiceConfig(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f'http://127.0.0.1:{port}: .*in use'):
            listen(ServiceConfig(port=port))


def test_it_listens_on_ipv6_too():
    if not socket.has_ipv6:
        pytest.skip('there is no IPv6 here')
    try:
        with listen(ServiceConfig(host='::1', port=0)) as listener:
            assert listener.getsockname()[0] == '::1'
    except OSError as error:
        pytest.skip(f'there is no IPv6 here: {error}')
