"""What an ingestion has done, for programs and for people."""

import dataclasses

_LISTED = 20  # Lines of a kind in the text; all are in the fields.


@dataclasses.dataclass(frozen=True)
class IngestReport:
    """What an ingestion has done.

    Attributes:
      added, replaced, unchanged, deleted: names of documents.
      failed: (file, reason) of files and pages that could not be read.
      same_content: names of documents that are copies of each other.
      unknown_metadata: files, and pages of files, that metadata names and that are not there.
      not_read: endings of files in the sources that are neither PDFs nor images, and how many
        there are of each.
      pages: all that the index now has.
      pages_read: rendered or copied in this run.
      ocr_pages: of all, those read by OCR.
      pages_without_text: of all, those without a text layer that no OCR has read.
      seconds: that it took.
    """

    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    same_content: tuple[tuple[str, ...], ...] = ()
    unknown_metadata: tuple[str, ...] = ()
    not_read: tuple[tuple[str, int], ...] = ()
    pages: int = 0
    pages_read: int = 0
    ocr_pages: int = 0
    pages_without_text: int = 0
    seconds: float = 0.0

    @property
    def changed(self) -> bool:
        """Whether any document is new, replaced or deleted."""
        return bool(self.added or self.replaced or self.deleted)

    def __str__(self) -> str:
        documents = ', '.join(f'{len(getattr(self, name))} {name}' for name in (
            'added', 'replaced', 'unchanged', 'deleted'))
        rate = self.pages_read / self.seconds if self.seconds else 0.0
        lines = [
            f'documents: {documents}; {len(self.failed)} files or pages could not be read',
            f'pages: {self.pages}, {self.pages_read} of them read now in {self.seconds:.1f} s '
            f'({rate:.1f} pages/s); {self.ocr_pages} by OCR']
        if self.pages_without_text:
            lines.append(f'{self.pages_without_text} pages have no text layer, and no search for '
                         'words finds them: ocr=True reads them')
        if self.not_read:
            kinds = ', '.join(f'{ending or "without ending"} {count}'
                              for ending, count in self.not_read)
            lines.append(f'not read: {sum(count for _, count in self.not_read)} files ({kinds})')
        lines += _listed([f'cannot be read: {file}: {reason}' for file, reason in self.failed])
        lines += _listed([f'same content: {", ".join(names)}' for names in self.same_content])
        lines += _listed([f'metadata of what is not there: {name}'
                          for name in self.unknown_metadata])
        return '\n'.join(lines)


def _listed(lines: list[str]) -> list[str]:
    more = len(lines) - _LISTED
    return lines[:_LISTED] + ([f'... and {more} more'] if more > 0 else [])
