"""Trajectories on disk, so that both sides train on the same tokens and images."""

from collections.abc import Sequence

import numpy as np

FIELDS = ('tokens', 'loss_mask', 'advantages')


def save(path: str, sequences: Sequence) -> None:
    """Writes sequences (`vrag_jax.data.sequences.TokenSequence`) to an npz file."""
    images = {image.key: image for s in sequences for image in s.images}
    arrays = {f'{field}{n}': getattr(s, field) for n, s in enumerate(sequences)
              for field in FIELDS}
    arrays |= {f'images{n}': np.array([list(images).index(i.key) for i in s.images], int)
               for n, s in enumerate(sequences)}
    arrays |= {f'pixels{n}': image.pixel_values for n, image in enumerate(images.values())}
    arrays |= {f'grid{n}': np.array(image.grid_thw) for n, image in enumerate(images.values())}
    np.savez(path, count=len(sequences), image_count=len(images), **arrays)


def load(path: str) -> tuple[list[dict], list[tuple[np.ndarray, np.ndarray]]]:
    """Reads what `save` wrote: fields of each sequence, patches and grid of each image."""
    data = np.load(path)
    sequences = [{field: data[f'{field}{n}'] for field in (*FIELDS, 'images')}
                 for n in range(int(data['count']))]
    return sequences, [(data[f'pixels{n}'], data[f'grid{n}'])
                       for n in range(int(data['image_count']))]
