"""Ingests documents on some cores: the worker of `ingestion`."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pypdfium2

from benchmarks import paired
from vrag_jax.corpus.ingestion.ingest import ingest
from vrag_jax.corpus.ingestion.ingest_config import IngestConfig


def digest(folder: Path) -> str:
    """SHA-256 of the names and contents of all files of a folder."""
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob('*') if path.is_file()):
        with file.open('rb') as stream:
            content = hashlib.file_digest(stream, 'sha256').hexdigest()
        total.update(f'{file.relative_to(folder).as_posix()} {content}\n'.encode())
    return total.hexdigest()


def main() -> None:
    source, scratch, cores = json.loads(sys.argv[1])
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, cores)

    def run(ocr: bool) -> tuple[float, dict[str, Any]]:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        config = IngestConfig(workers=len(cores), ocr='auto' if ocr else 'never')
        seconds, report = paired.timed(
            lambda: ingest([Path(source)], folder / 'pages', config, progress=False))
        again, unchanged = paired.timed(
            lambda: ingest([Path(source)], folder / 'pages', config, progress=False))
        if unchanged.changed or unchanged.pages_read:
            raise RuntimeError('a second ingestion of the same documents has read pages again')
        made = digest(folder / 'pages')
        shutil.rmtree(folder)
        return seconds, {'digest': made, 'pages': report.pages, 'ocr_pages': report.ocr_pages,
                         'failed': len(report.failed), 'again': again}

    paired.serve({'ingest': run}, {
        **paired.versions('pypdfium2', 'pillow'), 'pdfium': str(pypdfium2.PDFIUM_INFO),
        'workers': len(cores)})


if __name__ == '__main__':
    main()
