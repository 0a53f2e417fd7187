"""The other side of `service_day`: replaces documents and runs `build_index`, when told.

    python -m benchmarks.service_day_updates SOURCES WORKDIR

Reads lines `{"document": version, ...}` from the standard input, writes these versions, and
answers `done` when the task is through.
"""

import json
import sys
from pathlib import Path

from benchmarks.service_day_pages import write_document
from configs import build_index as config_file
from vrag_jax.config import parse
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig
from vrag_jax.tasks import build_index


def main(sources: Path, workdir: Path) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # What the task prints is no answer.
    sources.mkdir(parents=True, exist_ok=True)
    given = config_file.get_config()
    given.retrieval.sources = str(sources)
    given.retrieval.ingestion.workers = 1
    config = parse(RunConfig, given)
    for line in sys.stdin:
        for document, version in json.loads(line).items():
            write_document(sources, int(document), version)
        build_index.run(RunContext(config, workdir))
        print('done', file=answers, flush=True)


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]))
