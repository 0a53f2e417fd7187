"""Finds the folder that image paths of SFT conversations are relative to."""

import os
from collections.abc import Iterable
from pathlib import Path

from vrag_jax.data.records import Conversation


def find_image_root(
    source: str | os.PathLike, conversations: Iterable[Conversation], given: str = ''
) -> Path:
    """Returns the folder in which the images of conversations lie.

    Files are often named relative to the root of a repository, in one of whose folders the
    conversations are.

    Args:
      source: the conversations' file.
      conversations: of which the first image counts.
      given: the folder, if it is said.

    Returns:
      `given`; else the file's folder, or the next one above it, that holds the first image.

    Raises:
      FileNotFoundError: if no folder holds it; names the file and the image.
      ValueError: if a folder is given for conversations that bring their images.
    """
    folder = Path(given) if given else Path(source).absolute().parent
    number, illustrated = next(
        ((i, c) for i, c in enumerate(conversations) if c.images), (-1, None))
    if illustrated is None:
        return folder
    if illustrated.encoded:
        if given:
            raise ValueError(f'{source}: brings its images; leave image_root empty')
        return folder
    first = illustrated.images[0]
    candidates = [folder] if given else [folder, *folder.parents]
    for candidate in candidates:
        if (candidate / first).is_file():
            return candidate
    where = f'in {folder}' if given else f'in {folder} or a folder above it'
    raise FileNotFoundError(f'{source}, record {number}: there is no image {first} {where}; say '
                            'what the files are relative to with '
                            '--config.data.image_root=DIR (of data.prepare: --image_root=DIR)')
