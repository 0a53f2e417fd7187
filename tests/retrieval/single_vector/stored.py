"""An index in a directory of its own."""

from pathlib import Path

from vrag_jax.corpus.artifact import open_artifact, write_artifact
from vrag_jax.retrieval.single_vector.index import ScannIndex


def save(index: ScannIndex, directory: Path) -> None:
    write_artifact(directory, 'scann_index', index.write_files)


def load(directory: Path) -> ScannIndex:
    return open_artifact(directory, 'scann_index', ScannIndex.from_files)
