"""Ingestion of PDFs: pages a second on one core and on two, and what a kill costs.

    python -m benchmarks.ingestion --documents=../shared/mmlongbench_dev/documents

Each run ingests all documents into an empty folder, with a process a core, and once more,
when nothing has changed. Then an ingestion is killed by SIGKILL three times, a quarter of the
pages further each time, and resumed. All must leave the same files, byte for byte, and the
page index that is built on them the same vectors, or this fails.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from benchmarks import paired
from benchmarks.ingestion_worker import digest
from vrag_jax.corpus.artifact import MANIFEST
from vrag_jax.corpus.ingestion.ingest import ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
from vrag_jax.corpus.page_texts import page_texts
from vrag_jax.corpus.pages import PageStore
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.lexical.ngram import fit_words
from vrag_jax.retrieval.lexical.ngram_encoder import NgramEncoder

_DOCUMENTS = flags.DEFINE_string(
    'documents', '../shared/mmlongbench_dev/documents', 'Folder of PDFs.')
_OCR = flags.DEFINE_bool('ocr', False, 'Whether pages without a text layer that is believed are '
                         'read by OCR.')
_SCRATCH = flags.DEFINE_string('scratch', None, 'Where pages are written and deleted.')
_KILLS = flags.DEFINE_integer('kills', 3, 'Kills of the ingestion that is resumed.', lower_bound=1)

# The command as a user gives it.
INGEST = '''
import sys
from pathlib import Path
from vrag_jax.corpus.ingestion.ingest import ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig
config = IngestConfig(workers=int(sys.argv[3]), ocr=sys.argv[4])
ingest([Path(sys.argv[1])], Path(sys.argv[2]), config, progress=False)
'''


def _mode() -> str:
    return 'auto' if _OCR.value else 'never'


def index_checksums(pages: Path, index: Path) -> dict[str, str]:
    """Builds the character n-gram index over ingested pages; returns its files' checksums."""
    store = PageStore.open(pages / 'pages.jsonl')
    SearchEngine(store, fit_words(NgramEncoder(), store.ids, page_texts(store))).save(index)
    return json.loads((index / MANIFEST).read_text('utf-8'))['files']


def kill_after(pages: int, folder: Path, workers: int) -> None:
    """Starts an ingestion and kills it when so many pages have an image in the folder."""
    process = subprocess.Popen([
        sys.executable, '-c', INGEST, _DOCUMENTS.value, str(folder), str(workers),
        _mode()], cwd=paired.ROOT)
    while sum(1 for _ in folder.glob('documents/*/*.jpg')) < pages:
        if process.poll() is not None:
            raise RuntimeError(f'the ingestion has ended before {pages} pages were there')
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (folder / 'pages.jsonl').exists():
        raise RuntimeError('the ingestion was complete before it was killed')


def main(_: list[str]) -> None:
    cores = paired.use_cores(paired.THREADS.value)
    source = str(Path(_DOCUMENTS.value).resolve())
    kind = 'with OCR' if _OCR.value else 'text layers'
    with tempfile.TemporaryDirectory(dir=_SCRATCH.value) as scratch:
        workers = {count: paired.Worker(
            f'{count} cores', [sys.executable, '-m', 'benchmarks.ingestion_worker',
                               json.dumps([source, scratch, cores[:count]])])
            for count in (1, len(cores))}
        conditions = paired.Conditions(
            'ingestion', list(workers.values()), paired.THREADS.value, cores)
        replies = paired.in_turn(
            {str(count): paired.Lane(worker, 'ingest', {'ocr': _OCR.value})
             for count, worker in workers.items()}, paired.REPEATS.value)
        for worker in workers.values():
            worker.__exit__()
        checks = [reply.check for lane in replies.values() for reply in lane]
        expected = checks[0]['digest']
        if any(check['digest'] != expected for check in checks):
            raise RuntimeError('ingestions of the same documents have left different files')
        pages = checks[0]['pages']
        seconds = {int(name): [reply.seconds for reply in lane] for name, lane in replies.items()}
        pairs = [one / many for one, many in zip(seconds[1], seconds[len(cores)], strict=True)]
        one, many = (paired.spread(seconds[count]) for count in (1, len(cores)))
        paired.emit(conditions.record(
            f'{pages} pages, {kind}', 'pages/s', one_core=one, all_cores=many,
            pages_per_s=round(pages / many['median'], 2),
            speedup=round(one['median'] / many['median'], 3),
            speedup_min=round(min(pairs), 3), speedup_max=round(max(pairs), 3),
            ocr_pages=checks[0]['ocr_pages'], failed=checks[0]['failed'],
            same_files=True), paired.OUT.value)
        paired.emit(conditions.record(
            f'again, nothing has changed, {kind}', 's',
            **paired.spread([reply.check['again'] for reply in replies[str(len(cores))]])),
            paired.OUT.value)

        folder, whole = Path(scratch) / 'killed', Path(scratch) / 'whole'
        config = IngestConfig(workers=len(cores), ocr=_mode())
        goals = [round(pages * (i + 1) / (_KILLS.value + 1)) for i in range(_KILLS.value)]
        for goal in goals:
            kill_after(goal, folder, len(cores))
        taken, report = paired.timed(lambda: ingest([Path(source)], folder, config, progress=False))
        if digest(folder) != expected:
            raise RuntimeError('what was killed and resumed has left different files')
        ingest([Path(source)], whole, config, progress=False)
        if index_checksums(folder, Path(scratch) / 'a') != index_checksums(
                whole, Path(scratch) / 'b'):
            raise RuntimeError('the index of what was killed and resumed is another one')
        paired.emit(conditions.record(
            f'killed and resumed, {kind}', 'pages', killed_at=' '.join(map(str, goals)),
            pages_read_at_last=report.pages_read, of=pages, seconds_at_last=round(taken, 3),
            same_files=True, same_index=True),
            paired.OUT.value)


if __name__ == '__main__':
    app.run(main)
