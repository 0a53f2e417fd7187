"""Leases: versions of files stay on disk until their last reader has moved on.

A manifest is replaced as a whole; the files that it names are deleted when no manifest in use
names them. Who reads a manifest holds a lease: a shared lock (`flock`) on the very file that
was read. It needs no right to write, and ends with the process, however that ends. Who replaces
the manifest calls `retain` before, which leaves the old file a second name, and deletes
afterwards only what no manifest of `still_read` names.

Locks reach as far as the file system carries them: all processes of a host on local disks, in
containers too; all hosts on NFS, CephFS, GPFS, and Lustre mounted with `flock`. Where they end
at a host (Lustre with `localflock`, most FUSE mounts of object stores), readers on other hosts
are not seen.
"""

import fcntl
import logging
import os
import uuid
import weakref
from pathlib import Path

_LOG = logging.getLogger(__name__)
_OLD = '.old'


class Lease:
    """Holds one version of a manifest, until it is released or nobody refers to it.

    Args:
      descriptor: of the file, locked; closed at the end.
    """

    def __init__(self, descriptor: int):
        self._close = weakref.finalize(self, os.close, descriptor)

    def release(self) -> None:
        """Ends the lease; once is enough."""
        self._close()

    def follow(self, owner: object) -> None:
        """Holds until `owner` is gone, too; one that cannot be watched holds nothing."""
        try:
            weakref.finalize(owner, self.release)
        except TypeError:
            self.release()


def read_leased(file: Path) -> tuple[str, Lease]:
    """Reads a manifest, UTF-8, and holds what it names.

    Raises:
      OSError: if there is no such file.
    """
    while True:
        descriptor = os.open(file, os.O_RDONLY)
        lease = Lease(descriptor)
        try:
            # Waits while somebody looks whether this version is still read: a moment.
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            _LOG.warning('%s: no lock can be taken there (%s): files that an update replaces may '
                         'be deleted while they are read', file, error)
        else:
            # Replaced before it was locked, it may have been found without a reader. Opened
            # again, not looked at: other hosts see through their caches then.
            if not _is(file, descriptor):
                lease.release()
                continue
        with open(os.dup(descriptor), encoding='utf-8') as stream:
            return stream.read(), lease


def retain(file: Path) -> None:
    """Keeps a manifest that is about to be replaced, for those who read it."""
    try:
        os.link(file, file.with_name(f'{file.name}.{uuid.uuid4().hex}{_OLD}'))
    except FileNotFoundError:
        return
    except OSError as error:
        _LOG.warning('%s: no second name can be given there (%s): who reads what it names may '
                     'miss files once it is replaced', file, error)


def still_read(file: Path) -> list[str]:
    """Returns the texts of replaced manifests that somebody reads, and forgets the others.

    To be called by one process at a time, after the manifest was replaced.
    """
    texts = []
    for old in sorted(file.parent.glob(f'{file.name}.*{_OLD}')):
        # Some network file systems give this lock to those who may write alone.
        writable = os.access(old, os.W_OK)
        with open(old, 'r+' if writable else 'r', encoding='utf-8') as stream:
            try:
                # Of one that was to be replaced, and was not, for its writer was killed, only
                # the second name goes.
                if not _is(file, stream.fileno()):
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                old.unlink()
            except BlockingIOError:
                texts.append(stream.read())
    return texts


def _is(file: Path, descriptor: int) -> bool:
    """Whether a file is the one that is open."""
    try:
        other = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return os.path.sameopenfile(other, descriptor)
    finally:
        os.close(other)
