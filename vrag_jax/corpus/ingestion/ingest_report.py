"""What an ingestion has done, for programs and for people."""

import dataclasses

from vrag_jax.corpus.ingestion.folders import NO_TEXT

_AUTO = "ocr='auto' reads them"
_LISTED = 20  # Lines of a kind in the text; all are in the fields.


@dataclasses.dataclass(frozen=True)
class IngestReport:
    """What an ingestion has done.

    Attributes:
      added, replaced, unchanged, deleted: names of documents.
      failed: (file, reason) of files and pages that could not be read.
      same_content: names of documents that are copies of each other.
      unknown_metadata: files, and pages of files, that metadata names and that are not there.
      ambiguous_metadata: files that metadata names and that lie in several sources, with the names
        that tell them apart.
      not_read: endings of files in the sources that are neither PDFs nor images, and how many
        there are of each.
      pages: all that the index now has.
      pages_read: rendered or copied in this run, those that could not be read included.
      ocr_pages: of all, those read by OCR, or completed by it.
      unread: (file and page, reason) of all pages whose text layer is missing or not believed,
        and that no OCR has read.
      ocr_missing: what is to be installed for the OCR, where it is wanted and not there.
      seconds: that it took.
    """

    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    same_content: tuple[tuple[str, ...], ...] = ()
    unknown_metadata: tuple[str, ...] = ()
    ambiguous_metadata: tuple[str, ...] = ()
    not_read: tuple[tuple[str, int], ...] = ()
    pages: int = 0
    pages_read: int = 0
    ocr_pages: int = 0
    unread: tuple[tuple[str, str], ...] = ()
    ocr_missing: str = ''
    seconds: float = 0.0

    @property
    def changed(self) -> bool:
        """Whether any document is new, replaced or deleted."""
        return bool(self.added or self.replaced or self.deleted)

    @property
    def pages_without_text(self) -> int:
        """How many of the unread have no text layer."""
        return sum(reason == NO_TEXT for _, reason in self.unread)

    def __str__(self) -> str:
        documents = ', '.join(f'{len(getattr(self, name))} {name}' for name in (
            'added', 'replaced', 'unchanged', 'deleted'))
        rate = self.pages_read / self.seconds if self.seconds else 0.0
        lines = [
            f'documents: {documents}; {len(self.failed)} files or pages could not be read',
            f'pages: {self.pages}, {self.ocr_pages} of them by OCR; {self.pages_read} read now in '
            f'{self.seconds:.1f} s ({rate:.1f} pages/s)']
        if self.not_read:
            kinds = ', '.join(f'{ending or "without ending"} {count}'
                              for ending, count in self.not_read)
            lines.append(f'passed over: {sum(count for _, count in self.not_read)} files ({kinds})')
        if self.unread:
            lines.append(f'{len(self.unread)} pages have no text layer, or one that is not '
                         'believed or lacks what they show, and no search for words finds that: '
                         f'{self.ocr_missing or _AUTO}')
        lines += _listed([f'not read by OCR: {page}: {reason}' for page, reason in self.unread])
        lines += _listed([f'cannot be read: {file}: {reason}' for file, reason in self.failed])
        lines += _listed([f'same content: {", ".join(names)}' for names in self.same_content])
        lines += _listed([f'metadata names what is not there: {name}'
                          for name in self.unknown_metadata])
        lines += _listed([f'metadata names what lies in several sources: {name}'
                          for name in self.ambiguous_metadata])
        return '\n'.join(lines)


def _listed(lines: list[str]) -> list[str]:
    more = len(lines) - _LISTED
    return lines[:_LISTED] + ([f'... and {more} more'] if more > 0 else [])
