"""The kinds of retriever there are, and reading one back from its files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.embedding import Embedder
from vrag_jax.retrieval.fusion import HybridRetriever
from vrag_jax.retrieval.late_interaction.retriever import LateInteractionRetriever
from vrag_jax.retrieval.lexical.bm25 import Bm25Retriever
from vrag_jax.retrieval.lexical.ngram import NgramListsRetriever, NgramVectorsRetriever
from vrag_jax.retrieval.retriever import Retriever
from vrag_jax.retrieval.single_vector.retriever import DenseRetriever

_READERS: dict[str, Any] = {cls.kind: cls for cls in (
    DenseRetriever, NgramListsRetriever, LateInteractionRetriever, Bm25Retriever)}


def read_retriever(kind: str, folder: Path, fields: dict[str, Any],
                   embedders: Sequence[Embedder] = ()) -> Retriever:
    """Reads what a retriever of that kind wrote with `write_files`.

    Args:
      kind: of the retriever.
      folder: with its files.
      fields: that `write_files` returned.
      embedders: whose weights are not in the files; found by their fingerprints.

    Raises:
      ArtifactError: for an unknown kind, wrong files, or an embedder that is not given.
    """
    if kind == HybridRetriever.kind:
        return HybridRetriever.from_files(folder, fields, embedders, read_retriever)
    if kind not in _READERS:
        raise ArtifactError(f'{folder}: retriever {kind!r} is unknown; there are '
                            f'{sorted([*_READERS, HybridRetriever.kind])}')
    if kind == DenseRetriever.kind and 'embedder' not in fields.get('encoder', ()):
        return NgramVectorsRetriever.from_files(folder, fields)
    return _READERS[kind].from_files(folder, fields, embedders)
