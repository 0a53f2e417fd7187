"""Search by words over a store, without a config."""

from collections.abc import Sequence
from pathlib import Path

from vrag_jax.corpus.pages import PageStore
from vrag_jax.retrieval.engine import SearchEngine
from vrag_jax.retrieval.lexical.ngram import fit_words
from vrag_jax.retrieval.lexical.ngram_encoder import NgramEncoder


def index_words(store: PageStore, texts: Sequence[str], encoder: NgramEncoder,
                directory: Path | None = None) -> SearchEngine:
    """Fits an encoder on the pages' texts and indexes them, in a directory if one is given."""
    engine = SearchEngine(store, fit_words(encoder, store.ids, texts))
    if directory is not None:
        engine.save(directory)
    return engine
