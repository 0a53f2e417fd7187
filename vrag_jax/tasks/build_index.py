"""Documents in, searchable pages out: ingestion, index, and a report."""

import dataclasses
from pathlib import Path

from vrag_jax.ingestion.directories import MANIFEST
from vrag_jax.ingestion.ingest import ingest, remove_unused
from vrag_jax.parallel.processes import barrier, is_main
from vrag_jax.tasks.corpus import build_corpus, report_retrieval
from vrag_jax.tasks.settings import RunConfig

PAGES = 'pages'  # Where in its workdir the task keeps the pages.


def run(config: RunConfig, workdir: Path) -> None:
    """Ingests `retrieval.sources`, if there are any, and indexes the pages.

    Without sources the pages are those of `config.data`. With questions in `config.data` the
    quality of the search is printed too.
    """
    if config.retrieval.sources:
        config = _ingest(config, workdir / PAGES)
    try:
        corpus = build_corpus(config, workdir)
    except (ValueError, ImportError) as error:
        raise SystemExit(f'index: {error}') from error
    index = corpus.engine.index
    print(f'index: {corpus.engine.encoder.kind}, {len(index)} vectors of {index.dims} numbers, '
          f'{"exact" if index.exact else "approximate"} search', flush=True)
    report_retrieval(corpus)
    if config.retrieval.sources:
        barrier('indexed')  # Others may still read the pages of before.
        if is_main():
            remove_unused(workdir / PAGES)


def _ingest(config: RunConfig, directory: Path) -> RunConfig:
    """Ingests the sources; returns the config whose pages are those of the directory."""
    settings = config.retrieval.ingestion
    settings = dataclasses.replace(settings, ocr=settings.ocr or config.retrieval.ocr)
    if is_main():
        try:
            report = ingest([Path(s) for s in config.retrieval.source_paths], directory, settings,
                            keep_unused=True)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            raise SystemExit(f'ingestion: {error}') from error
        print(report, flush=True)
    barrier('ingested')
    data = dataclasses.replace(config.data, source='files', manifest=str(directory / MANIFEST))
    return dataclasses.replace(config, data=data)
