"""TFDS builders of questions and conversations; see `datasets` for what fills and reads them.

Importing this module imports TFDS, which takes a second.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


class _RowsBuilder(tfds.core.GeneratorBasedBuilder):
    """Writes rows that somebody else makes, in their order.

    Args:
      rows: what to write, by split; only needed to write. Taken one by one.
      **kwargs: of the TFDS builder, e.g. `data_dir` and `file_format`.
    """

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'First version.'}
    # Nothing is downloaded. To look for checksums of downloads, TFDS 4.9.10 needs
    # importlib_resources, which it does not declare.
    url_infos = None

    def __init__(self, *, rows: Mapping[str, Iterable[Mapping[str, Any]]] | None = None, **kwargs):
        self._rows = rows or {}
        super().__init__(**kwargs)

    def _dataset_info(self, description: str, features: Mapping[str, Any]) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, description=description,
            features=tfds.features.FeaturesDict(features),
            # Runs draw examples by number: these are to be those of the file.
            disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        if not self._rows:
            raise ValueError(f'{self.name}: made from your own files, not downloaded; write it '
                             'with python -m vrag_jax.data.prepare')
        return {split: self._generate_examples(rows) for split, rows in self._rows.items()}

    def _generate_examples(
        self, rows: Iterable[Mapping[str, Any]]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        yield from enumerate(rows)


class VragQuestions(_RowsBuilder):
    """Questions in the reference's format.

    `meta_info` and `evidence` are JSON: they may hold any field, and TFDS would
    round the corners of a box to single precision.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return self._dataset_info('Questions about a corpus of page images.', {
            'uid': tfds.features.Text(),
            'query': tfds.features.Text(),
            'reference_answer': tfds.features.Text(),
            'answer_aliases': tfds.features.Sequence(tfds.features.Text()),
            'meta_info': tfds.features.Text(),
            'evidence': tfds.features.Text(),
        })


class VragConversations(_RowsBuilder):
    """ShareGPT conversations with the files of their images.

    `data` is not an `Image` feature: without TensorFlow TFDS decodes every image
    of an example that is read, whether its pixels are needed or not.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return self._dataset_info('SFT conversations about page images.', {
            'messages': tfds.features.Sequence(
                {'role': tfds.features.Text(), 'content': tfds.features.Text()}),
            'images': tfds.features.Sequence(
                {'file': tfds.features.Text(),
                 'data': tfds.features.Tensor(shape=(), dtype=np.object_)}),
        })
