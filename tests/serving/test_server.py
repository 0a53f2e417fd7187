"""The task `serve_index` as a user starts it, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.pages import PageStore
from vrag_jax.serving.config import ServiceConfig
from vrag_jax.serving.server import listen

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


def test_what_cannot_be_served_is_told_in_one_line(make_corpus, tmp_path):
    folder = make_corpus()
    given = ('--config.data.source=files', f'--config.data.manifest={folder / "pages.jsonl"}')
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        # The index in the folder is of n-grams; it stays as it is.
        for workdir, override, message in (
                (tmp_path / 'run', f'--config.serving.port={port}', 'cannot listen on'),
                (folder, "--config.retrieval.retrievers=('bm25',)", 'have other settings')):
            process = start(workdir, *given, override)
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 1 and 'Traceback' not in output
            assert output.splitlines()[-1].startswith('serve: ') and message in output
    assert SearchEngine.open(folder / 'index', PageStore.open(folder / 'pages.jsonl'))


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
