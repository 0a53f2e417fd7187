"""Serves an index over HTTP: search as the reference's clients ask for it, and page images.

Serves the pages of a run, here those of `make run`; or your own, indexed first if there is no
index in the workdir yet:

    python -m vrag_jax.main --config=configs/serve_index.py --workdir=runs/tiny
    python -m vrag_jax.main --config=configs/serve_index.py --workdir=runs/pages \\
        --config.data.source=files --config.data.manifest=PAGES.jsonl --config.retrieval.ocr=True

    curl 'http://127.0.0.1:8002/search?queries=revenue+of+2019'

Training and evaluation search there with `--config.retrieval.url=http://127.0.0.1:8002`. Needs
the extra `serve`, and `ocr` for pages without text. Only this machine reaches it unless
`serving.host` says otherwise; there is no authentication. See `docs/RETRIEVAL_SERVICE.md`.
"""

from ml_collections import ConfigDict

from configs import tiny


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = 'serve_index'
    config.data = tiny.get_config().data
    config.data.manifest = ''
    config.retrieval = ConfigDict({'ocr': False})
    config.serving = ConfigDict({
        # The reference's port and number of results.
        'host': '127.0.0.1', 'port': 8002, 'get_results': 10,
        # What stands before a page's file in `image_file`; '' is the manifest's folder.
        'image_root': '',
        'search_threads': 64, 'image_threads': 2,
        'cache_bytes': 1 << 26, 'image_cache_bytes': 1 << 29,
        'reload_seconds': 5.0, 'keep_seconds': 600.0, 'shutdown_seconds': 30.0,
        # Compiled before it listens; what takes longer is left to those who ask first.
        'warm_up': {'tokens': 512, 'queries': 64, 'seconds': 300.0},
        'limits': {
            'body_bytes': 1 << 20, 'url_bytes': 1 << 20, 'header_seconds': 10.0,
            'body_seconds': 10.0, 'answer_seconds': 60.0, 'idle_seconds': 75.0,
            'connections': 1024, 'queries': 1024, 'query_chars': 8192, 'k': 1000,
            'hits': 1 << 15,  # Queries times k.
            'filter_values': 1000, 'image_pixels': 1 << 25, 'waiting': 512,
            'waiting_bytes': 1 << 26, 'sending_bytes': 1 << 28,
        },
    })
    return config
