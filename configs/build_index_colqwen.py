"""`build_index.py` with ColQwen2, the reference's retriever: page images, late interaction.

    python -m vrag_jax.main --config=configs/build_index_colqwen.py --workdir=runs/reports \\
        --config.retrieval.sources=REPORTS,MORE.pdf \\
        --config.retrieval.embedders.pages.path=checkpoints/colqwen2-v1.0-hf

`build_index.py` with `--config.retrieval.colqwen2=checkpoints/colqwen2-v1.0-hf` builds the same;
here its settings are written out, to be changed.

`path` is a directory in transformers' format (`ColQwen2ForRetrieval`) or colpali-engine's, of
ColQwen2 or ColQwen2.5, a LoRA adapter included. Text is not looked at, so OCR is not needed.
Embedding is spread over `config.mesh` and over all processes that are started; the index is
built by one. Memory and quality of the search: `docs/RETRIEVAL_INDEX.md`.
"""

from ml_collections import ConfigDict

from configs import build_index


def get_config() -> ConfigDict:
    config = build_index.get_config()
    config.retrieval.retrievers = ('pages',)
    config.retrieval.embedders = ConfigDict({'pages': {
        'kind': 'colqwen', 'path': 'checkpoints/colqwen2-v1.0-hf', 'dtype': 'bfloat16',
        'batch_tokens': 16_384,
        # Pages as the model sees them: 768 image tokens at most; 0 takes the checkpoint's.
        'visual': {'base': '', 'min_pixels': 0, 'max_pixels': 602_112},
    }})
    config.retrieval.late_interaction = ConfigDict({
        # Pages by which exact MaxSim gives way to candidates, and how many of these.
        'exact_below': 2000, 'pool': 2000, 'candidates': 100,
        # 'binary' keeps a bit a dimension; `pooling` 2 averages squares of 2x2 image tokens.
        'tokens': {'storage': 'bfloat16', 'pooling': 1},
    })
    return config
