"""Digest of an embedder: its files and settings."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What decides vectors beside the settings: sizes, tokenizer, processor, weights.
_PATTERNS = ('*.json', '*.safetensors', '*.jinja', '*.txt', '*.model')


def fingerprint(kind: str, directory: Path, settings: Mapping[str, Any],
                *more: Path) -> str:
    """Returns the SHA-256 of what an embedder is made of.

    Args:
      kind: of the embedder.
      directory: of its checkpoint; where it lies does not matter, what is in it does.
      settings: JSON values.
      *more: other directories, such as that of an adapter's base.
    """
    digest = hashlib.sha256(json.dumps([kind, settings], sort_keys=True).encode())
    for folder in (directory, *more):
        for pattern in _PATTERNS:
            for file in sorted(Path(folder).glob(pattern)):
                with file.open('rb') as stream:
                    digest.update(file.name.encode())
                    digest.update(hashlib.file_digest(stream, 'sha256').digest())
    return digest.hexdigest()
