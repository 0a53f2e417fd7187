"""How documents become pages: the settings of an ingestion."""

import dataclasses
from typing import Any

IMAGE_FORMATS = ('jpeg', 'webp', 'png')
OCR_MODES = ('auto', 'always', 'never')
GROUPINGS = ('folder', 'file', 'numbered')
RENDERER = 'pdfium'
_READING = 2  # How texts are read and judged; with another number all documents are read again.


@dataclasses.dataclass(frozen=True)
class IngestConfig:
    """Settings of an ingestion; those of `rendering` are fixed for the life of an index.

    Attributes:
      dpi: of rendered PDF pages.
      max_pixels: of a page's image; larger pages are rendered, larger images scaled down
        to it, but for those that can be taken as they are, up to 2.5 times as many.
      image_format: of rendered pages: 'jpeg', 'webp' or 'png'. Images in one of these
        formats that are upright and not too large are taken as they are.
      quality: of 'jpeg' and 'webp', 1 to 100.
      images: what image files are: 'folder', those of a folder are the pages of one
        document, in the natural order of their names; 'file', each is a document;
        'numbered', `report_3.png` is page 3 of document `report`. A TIFF file is always a
        document of its own, a page a frame.
      ocr: which pages are read by OCR (extra `ocr`): 'auto', those whose text layer is missing,
        not believed or incomplete, where the extra is installed; 'always', all, and without the
        extra it is an error; 'never', none. May be another in every run.
      metadata: CSV or JSON lines file of own fields; '' takes `metadata.csv` or
        `metadata.jsonl` of each source folder, where there is one, for this source alone.
      delete_missing: whether documents that are in no source any more are deleted.
      most_deleted: fraction of the documents that one ingestion may delete; more is an error,
        before anything is done: the wrong sources may have been given.
      verify: whether the stored images are compared with their SHA-256 before anything is read,
        not with their size alone; reads them all.
      workers: processes; 0 is one a core.
      pages_per_task: pages that a process works on before it asks for more.
      timeout_s: seconds for a task, after which its document counts as unreadable.
    """

    dpi: int = 144
    max_pixels: int = 16_000_000
    image_format: str = 'jpeg'
    quality: int = 90
    images: str = 'folder'
    ocr: str = 'auto'
    metadata: str = ''
    delete_missing: bool = True
    most_deleted: float = 0.5
    verify: bool = False
    workers: int = 0
    pages_per_task: int = 4
    timeout_s: float = 600.0

    def __post_init__(self):
        for name, allowed in (('image_format', IMAGE_FORMATS), ('images', GROUPINGS),
                              ('ocr', OCR_MODES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f'{name} must be one of {allowed}, got {getattr(self, name)!r}')
        for name in ('dpi', 'max_pixels', 'pages_per_task'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if not 1 <= self.quality <= 100:
            raise ValueError(f'quality must be from 1 to 100, got {self.quality}')
        if not 0 <= self.most_deleted <= 1:
            raise ValueError(f'most_deleted must be from 0 to 1, got {self.most_deleted}')
        if self.workers < 0 or not self.timeout_s > 0:
            raise ValueError(f'need workers >= 0 and timeout_s > 0, got {self.workers} and '
                             f'{self.timeout_s}')

    def rendering(self) -> dict[str, Any]:
        """What all pages of an index have in common; recorded with it."""
        return {'renderer': RENDERER, 'dpi': self.dpi, 'max_pixels': self.max_pixels,
                'image_format': self.image_format, 'quality': self.quality}

    def identity(self) -> dict[str, Any]:
        """What names the folder of a document, beside its content."""
        return {**self.rendering(), 'reading': _READING}
