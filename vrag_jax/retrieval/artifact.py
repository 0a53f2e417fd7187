"""Directories that are replaced atomically and checked when they are read.

A directory holds `manifest.json` and the folder of files that it names. New
files go into a folder of their own; replacing the manifest switches over; the
old folder is removed last. A reader sees the old version or the new one, whole.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
MANIFEST = 'manifest.json'


class ArtifactError(ValueError):
    """A directory that is not what its manifest, or the caller, says."""


def write_artifact(directory: Path, kind: str,
                   write_files: Callable[[Path], dict[str, Any]]) -> None:
    """Writes a directory, or replaces the one that is there.

    Args:
      directory: is made if needed.
      kind: what it is; asked for again by `read_artifact`.
      write_files: writes files into the folder it is given, and returns fields
        for the manifest.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    data = directory / f'data-{uuid.uuid4().hex}'
    data.mkdir()
    try:
        fields = write_files(data)
        manifest = {'kind': kind, 'version': FORMAT_VERSION, 'data': data.name,
                    'files': _checksums(data), 'fields': fields}
        partial = data / MANIFEST
        partial.write_text(json.dumps(manifest, ensure_ascii=False, indent=1), 'utf-8')
        for file in data.rglob('*'):
            _sync(file)
        os.replace(partial, directory / MANIFEST)
    except BaseException:
        shutil.rmtree(data, ignore_errors=True)
        raise
    _sync(directory)
    for old in directory.glob('data-*'):
        if old != data:
            shutil.rmtree(old, ignore_errors=True)


def read_artifact(directory: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """Checks a directory against its manifest.

    Args:
      directory: what `write_artifact` wrote.
      kind: what it has to be.

    Returns:
      The folder of its files and the manifest's fields.

    Raises:
      FileNotFoundError: if there is no manifest.
      ArtifactError: if kind, version, the set of files or a checksum differs;
        the message names it.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f'{path}: missing, so {directory} is no {kind}')
    try:
        manifest = json.loads(path.read_text('utf-8'))
        found = manifest['kind'], manifest['version']
        data, files, fields = manifest['data'], manifest['files'], manifest['fields']
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f'{path}: corrupt manifest: {error!r}') from error
    if found != (kind, FORMAT_VERSION):
        raise ArtifactError(f'{path}: expected a {kind} of version {FORMAT_VERSION}, got a '
                            f'{found[0]} of version {found[1]}')
    if Path(data).name != data:
        raise ArtifactError(f'{path}: data folder {data!r} is not in {directory}')
    actual = _checksums(path.parent / data)
    for name in sorted(set(files) | set(actual)):
        if files.get(name) != actual.get(name):
            reason = ('is missing' if name not in actual else 'is not in the manifest'
                      if name not in files else 'has a wrong SHA-256 checksum')
            raise ArtifactError(f'{path.parent / data / name}: {reason}')
    return path.parent / data, fields


def _checksums(folder: Path) -> dict[str, str]:
    checksums = {}
    for file in sorted(p for p in folder.rglob('*') if p.is_file()):
        with file.open('rb') as stream:
            digest = hashlib.file_digest(stream, 'sha256').hexdigest()
        checksums[file.relative_to(folder).as_posix()] = digest
    return checksums


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
