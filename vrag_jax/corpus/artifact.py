"""Directories that are replaced atomically and checked when they are read.

A directory holds `manifest.json` and the folder of files that it names. New
files go into a folder of their own; replacing the manifest switches over; the
old folder is removed when nobody reads it any more (`leases`), by who writes next. A reader sees
the old version or the new one, whole, and goes on reading what it has opened or mapped.

Writers of one directory take turns, in this process and others.

Small files are hashed whenever a directory is opened. Of large ones the size is compared:
hashing an index of gigabytes would take seconds in each process that opens it, and pull
all of it through memory. They are hashed when they are written, and when asked for.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from vrag_jax.corpus.leases import Lease, read_leased, retain, still_read

FORMAT_VERSION = 1
MANIFEST = 'manifest.json'
_LOCK, _MAKING, _SCRATCH = '.lock', '.making', 'scratch'
LARGE = 64 << 20  # Bytes from which a file's checksum is not computed at each opening.

_T = TypeVar('_T')


class ArtifactError(ValueError):
    """A directory that is not what its manifest, or the caller, says."""


def write_artifact(directory: Path, kind: str,
                   write_files: Callable[[Path], dict[str, Any]]) -> None:
    """Writes a directory, or replaces the one that is there.

    Args:
      directory: is made if needed.
      kind: what it is; asked for again by `read_artifact`.
      write_files: writes files into the folder it is given, and returns fields
        for the manifest. It may link files of the version that is there: their
        checksums are taken over.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory / _LOCK):
        _write(directory, kind, write_files)


def _write(directory: Path, kind: str, write_files: Callable[[Path], dict[str, Any]]) -> None:
    data = directory / f'data-{uuid.uuid4().hex}'
    data.mkdir()
    partial = data / MANIFEST
    written = False
    try:
        fields = write_files(data)
        known = _linked_checksums(directory, data)
        files = _files(data)
        manifest = {'kind': kind, 'version': FORMAT_VERSION, 'data': data.name,
                    'files': {name: known.get(name) or file_digest(data / name) for name in files},
                    'sizes': files, 'fields': fields}
        partial.write_text(json.dumps(manifest, ensure_ascii=False, indent=1), 'utf-8')
        for file in data.rglob('*'):
            sync(file)
        written = True
        retain(directory / MANIFEST)
        os.replace(partial, directory / MANIFEST)
    except BaseException:
        # An interrupt may come right after the replacement: the data is the new version then.
        if not written or partial.exists():
            shutil.rmtree(data, ignore_errors=True)
        raise
    sync(directory)
    _remove_replaced(directory)


def remove_replaced(directory: Path) -> None:
    """Removes versions that nobody reads any more; for a writer that has read the last one."""
    with _locked(directory / _LOCK):
        _remove_replaced(directory)


def _remove_replaced(directory: Path) -> None:
    manifest = (directory / MANIFEST).read_text('utf-8')
    used = {_data_name(text) for text in (manifest, *still_read(directory / MANIFEST))}
    for data in directory.glob('data-*'):
        if data.name not in used:
            shutil.rmtree(data, ignore_errors=True)


@contextlib.contextmanager
def making(directory: Path) -> Iterator[Path]:
    """Waits for others who make a new version, and yields a folder for what is not written yet.

    It lies in the directory, so that files can be linked from it, and is removed at the end;
    what one that was killed has left there, at the beginning.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    scratch = directory / _SCRATCH
    with _locked(directory / _MAKING):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Waits for another who has the lock, e.g. a writer, who would remove what is written here."""
    with open(file, 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _data_name(manifest: str) -> str:
    """Returns the folder that a manifest names, '' if it is damaged."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(manifest)['data'])
    return ''


def open_artifact(directory: Path, kind: str, open_files: Callable[[Path, dict[str, Any]], _T],
                  verify: bool = False, owner: Callable[[_T], object] = lambda opened: opened
                  ) -> _T:
    """Checks a directory and opens its files; a version that comes meanwhile is opened instead.

    The files stay on disk as long as `owner` of what was opened is there.

    Args:
      directory: what `write_artifact` wrote.
      kind: what it has to be.
      open_files: is given the folder and the manifest's fields; reads, opens or maps
        every file it will need.
      verify: compute the checksums of large files, too.
      owner: returns what of the result reads the files.

    Raises:
      FileNotFoundError, ArtifactError: as `read_artifact`.
    """
    while True:
        text, lease = _leased_text(directory, kind)
        try:
            opened = open_files(*_check(directory, kind, text, verify))
        except (ArtifactError, OSError):
            lease.release()
            if _leased_text(directory, kind)[0] == text:
                raise
        else:
            lease.follow(owner(opened))
            return opened


def read_artifact(directory: Path, kind: str, verify: bool = False) -> tuple[Path, dict[str, Any]]:
    """Checks a directory against its manifest.

    Args:
      directory: what `write_artifact` wrote.
      kind: what it has to be.
      verify: compute the checksums of large files, too, not only their sizes.

    Returns:
      The folder of its files and the manifest's fields. Another process may replace and
      remove them before they are opened: see `open_artifact`.

    Raises:
      FileNotFoundError: if there is no manifest.
      ArtifactError: if kind, version, the set of files, a size or a checksum differs;
        the message names it.
    """
    return _check(directory, kind, _leased_text(directory, kind)[0], verify)


def _check(directory: Path, kind: str, text: str, verify: bool) -> tuple[Path, dict[str, Any]]:
    """Returns what `read_artifact` does, of the text of a manifest."""
    path = Path(directory) / MANIFEST
    try:
        manifest = json.loads(text)
        found = manifest['kind'], manifest['version']
        data, files, fields = manifest['data'], manifest['files'], manifest['fields']
        sizes = manifest.get('sizes', {})
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f'{path}: corrupt manifest: {error!r}') from error
    if found != (kind, FORMAT_VERSION):
        raise ArtifactError(f'{path}: expected a {kind} of version {FORMAT_VERSION}, got a '
                            f'{found[0]} of version {found[1]}')
    if Path(data).name != data:
        raise ArtifactError(f'{path}: data folder {data!r} is not in {directory}')
    actual = _files(path.parent / data)
    for name in sorted(set(files) | set(actual)):
        file = path.parent / data / name
        if name not in actual:
            raise ArtifactError(f'{file}: is missing')
        if name not in files:
            raise ArtifactError(f'{file}: is not in the manifest')
        hashed = verify or actual[name] < LARGE or name not in sizes
        if hashed and files[name] != file_digest(file):
            raise ArtifactError(f'{file}: has a wrong SHA-256 checksum')
        if actual[name] != sizes.get(name, actual[name]):
            raise ArtifactError(f'{file}: has {actual[name]} bytes, expected {sizes[name]}')
    return path.parent / data, fields


def _leased_text(directory: Path, kind: str) -> tuple[str, Lease]:
    path = Path(directory) / MANIFEST
    try:
        return read_leased(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f'{path}: missing, so {directory} is no {kind}') from None


def _files(folder: Path) -> dict[str, int]:
    """Returns the sizes of all files of a folder, by name."""
    return {file.relative_to(folder).as_posix(): file.stat().st_size
            for file in sorted(p for p in folder.rglob('*') if p.is_file())}


def file_digest(file: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with file.open('rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def _linked_checksums(directory: Path, data: Path) -> dict[str, str]:
    """Returns the checksums of files that are links to files of the version that is there."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text('utf-8'))
        old = {_identity(directory / manifest['data'] / name): checksum
               for name, checksum in manifest['files'].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    new = {name: _identity(data / name) for name in _files(data)}
    return {name: old[identity] for name, identity in new.items() if identity in old}


def _identity(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_dev, status.st_ino


def sync(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
