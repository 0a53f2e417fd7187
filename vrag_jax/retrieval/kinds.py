"""The kinds of retriever: one line each."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vrag_jax.config import ConfigError, parse
from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.embedders.interface import Embedder
from vrag_jax.retrieval.fusion import HybridRetriever
from vrag_jax.retrieval.late_interaction.retriever import LateInteractionRetriever
from vrag_jax.retrieval.lexical.bm25 import Bm25Retriever
from vrag_jax.retrieval.lexical.ngram import NgramListsRetriever, NgramVectorsRetriever
from vrag_jax.retrieval.retriever import Retriever, RetrieverKind
from vrag_jax.retrieval.single_vector.retriever import DenseRetriever

Kind = TypeVar('Kind', bound=type[RetrieverKind])

_KINDS: dict[tuple[str, str], type[RetrieverKind]] = {}


def register(kind: Kind) -> Kind:
    """Makes a kind of retriever known to configs and to indices on disk.

    Of several classes of one name the first is built; it may make one of the others.

    Raises:
      ValueError: if another one has its name and kind of files.
    """
    key = kind.name, kind.kind
    known = _KINDS.setdefault(key, kind)
    if known.__qualname__ != kind.__qualname__:
        raise ValueError(f'retriever {kind.name!r} of files {kind.kind!r} is {known.__qualname__}')
    _KINDS[key] = kind  # A config file that defines it may be read twice.
    return kind


register(NgramVectorsRetriever)
register(NgramListsRetriever)
register(Bm25Retriever)
register(DenseRetriever)
register(LateInteractionRetriever)


def kind_names() -> tuple[str, ...]:
    """Returns the names, in configs, of the kinds that need no embedder."""
    return tuple(dict.fromkeys(kind.name for kind in _KINDS.values() if not kind.vectors))


def kind_settings(values: Mapping[str, Any], retrievers: Collection[str]) -> dict[str, Any]:
    """Returns the settings of `config.retrieval.kinds` as the dataclasses of their kinds.

    Args:
      values: fields by name of a kind; those that are missing are the defaults.
      retrievers: that are used.

    Raises:
      ConfigError: for settings of what is not used or has none, or fields that are wrong.
    """
    classes = {kind.name: kind.settings for kind in _KINDS.values()
               if kind.settings is not None and kind.name in retrievers}
    for name in values:
        if name not in classes:
            raise ConfigError(f'config.retrieval.kinds.{name}: is none of the retrievers '
                              f'{tuple(retrievers)} that have settings there')
    return {name: given if isinstance(given := values.get(name, {}), cls)
            else parse(cls, given, f'config.retrieval.kinds.{name}')
            for name, cls in classes.items()}


def kind_of(name: str, embedder: Embedder | None) -> type[RetrieverKind]:
    """Returns the kind of a name, of those that search what an embedder makes.

    Args:
      name: of the kind; '' takes the first that searches vectors as the embedder makes them.
      embedder: None for a kind that needs none.

    Raises:
      ValueError: if there is no such kind.
    """
    vectors = '' if embedder is None else 'several' if embedder.multi_vector else 'one'
    kinds = [kind for kind in _KINDS.values() if kind.vectors == vectors]
    for kind in kinds:
        if name in ('', kind.name):
            return kind
    made = f'{vectors} a page of an embedder' if vectors else 'no embedder'
    raise ValueError(f'no kind of retriever {name!r} searches vectors of {made}; there are '
                     f'{[kind.name for kind in kinds]}')


def read_retriever(kind: str, folder: Path, fields: dict[str, Any],
                   embedders: Sequence[Embedder] = ()) -> Retriever:
    """Reads what a retriever of that kind wrote with `write_files`.

    Args:
      kind: of the files.
      folder, fields, embedders: see `RetrieverKind.load`.

    Raises:
      ArtifactError: for an unknown kind, wrong files, or an embedder that is not given.
    """
    if kind == HybridRetriever.kind:
        return HybridRetriever.load(folder, fields, embedders, read_retriever)
    known = [cls for cls in _KINDS.values() if cls.kind == kind]
    if not known:
        raise ArtifactError(
            f'{folder}: retriever {kind!r} is unknown; there are '
            f'{sorted({HybridRetriever.kind, *(cls.kind for cls in _KINDS.values())})}')
    return next((cls for cls in known if cls.reads_files(fields)), known[0]).load(
        folder, fields, embedders)
