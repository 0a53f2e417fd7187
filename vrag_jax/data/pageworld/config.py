"""Sizes, splits and question shares of a PageWorld."""

import dataclasses
import math

QUESTION_TYPES = ('text', 'table', 'chart', 'position', 'layout', 'multi_hop')
SPLITS = ('train', 'validation', 'test')
COLUMNS = ('a', 'b', 'c')
GAP = 4  # raw pixels kept free around panels and bodies


@dataclasses.dataclass(frozen=True)
class PageWorldConfig:
    """How large and how difficult a PageWorld is. Lengths are raw pixels.

    Attributes:
      seed: seed of everything random; equal configs give equal files.
      train_documents, validation_documents, test_documents: documents a split.
      train_questions, validation_questions, test_questions: questions a split.
      pages_per_document: pages of a document, each with a topic of its own.
      page_size: width and height.
      grid: rows and columns of panels on a page.
      title_height: height of the strip with title and topic in small print.
      panel_jitter: a panel is moved by up to this much from its grid place.
      body_jitter: share of the free room of a panel over which the place of its
        body varies, 0 (always in the middle) to 1.
      heading_letters: headings are drawn from these; unique on a page.
      heading_height: height of a heading.
      digit_height: height of a value's digits.
      grain: strength of the spots on a body's paper, in grey levels. They are
        about as large as the strokes of a digit that is shown at a quarter of its
        size, and much weaker than those it has in a crop.
      body_size: width and height of a body, which is also the evidence box.
      cell_pitch: distance between the three values of a body.
      *_share: shares of the question types; must sum to 1.
      jpeg_quality: quality of the page files.
    """

    seed: int = 0
    train_documents: int = 500
    validation_documents: int = 20
    test_documents: int = 60
    train_questions: int = 4000
    validation_questions: int = 80
    test_questions: int = 240
    pages_per_document: int = 4
    page_size: tuple[int, int] = (448, 448)
    grid: tuple[int, int] = (2, 2)
    title_height: int = 32
    panel_jitter: int = 6
    body_jitter: float = 1.0
    heading_letters: str = 'ACEFHJKLMPRTUXYZ'
    heading_height: int = 60
    digit_height: int = 10
    grain: int = 35
    body_size: tuple[int, int] = (112, 56)
    cell_pitch: int = 36
    text_share: float = 0.25
    table_share: float = 0.15
    chart_share: float = 0.15
    position_share: float = 0.15
    layout_share: float = 0.1
    multi_hop_share: float = 0.2
    jpeg_quality: int = 92

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ('panel_jitter', 'grain') else 1
            if field.type is int and field.name != 'seed' and value < least:
                raise ValueError(f'{field.name} must be at least {least}, got {value}')
        if not 0 <= self.body_jitter <= 1:
            raise ValueError(f'body_jitter must lie in [0, 1], got {self.body_jitter}')
        letters = self.heading_letters
        if len(set(letters)) != len(letters) or not letters.isalpha() or not letters.isupper():
            raise ValueError(f'heading_letters must be different capitals, got {letters!r}')
        if min(self.grid) < 1 or not 2 <= self.panels <= len(letters):
            raise ValueError(f'grid must hold 2 to {len(letters)} panels (as many as there are '
                             f'heading_letters), got {self.grid}')
        if self.jpeg_quality > 100:
            raise ValueError(f'jpeg_quality must lie in [1, 100], got {self.jpeg_quality}')
        self._check_shares()
        self._check_sizes()

    def _check_shares(self):
        shares = self.shares
        for name, share in shares.items():
            if share < 0:
                raise ValueError(f'{name}_share must not be negative, got {share}')
        if not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
            names = ' + '.join(f'{name}_share' for name in shares)
            raise ValueError(f'{names} must be 1, got {sum(shares.values()):g}')
        if self.multi_hop_share and self.pages_per_document < 2:
            raise ValueError('multi_hop_share needs pages_per_document of at least 2')
        if self.pages_per_document * self.kinds_per_page < len(self.kinds):
            raise ValueError(
                f'pages_per_document = {self.pages_per_document} with grid {self.grid} cannot '
                f'hold the panel kinds {self.kinds} that the shares ask for')

    def _check_sizes(self):
        width, height = self.panel_size
        body_width, body_height = self.body_size
        need = (body_width + 2 * GAP, self.header_height + body_height + 2 * GAP)
        if width < need[0] or height < need[1]:
            raise ValueError(
                f'page_size {self.page_size} with grid {self.grid} leaves panels of '
                f'{width}x{height}, but heading_height and body_size need {need[0]}x{need[1]}')
        if 2 * self.cell_pitch + self.digit_height > body_width:
            raise ValueError(f'body_size {self.body_size} is too narrow for three values at '
                             f'cell_pitch {self.cell_pitch}')
        if 3 * self.digit_height > body_height:
            raise ValueError(f'body_size {self.body_size} is too low for digit_height '
                             f'{self.digit_height}')

    @property
    def shares(self) -> dict[str, float]:
        """Share of each question type."""
        return {name: getattr(self, f'{name}_share') for name in QUESTION_TYPES}

    @property
    def panels(self) -> int:
        """Panels on a page."""
        return self.grid[0] * self.grid[1]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Panel kinds that the questions need; 'text' is always among them."""
        return ('text',
                *(kind for kind, share in (('table', self.table_share),
                                           ('chart', self.chart_share),
                                           ('pointer', self.multi_hop_share)) if share))

    @property
    def kinds_per_page(self) -> int:
        """Different panel kinds on a page: each stands there at least twice.

        With one panel of its kind on the page a question would give its panel
        away without its heading.
        """
        return min(self.panels // 2, len(self.kinds))

    @property
    def header_height(self) -> int:
        """Height of a panel's header."""
        return self.heading_height + 4 * GAP

    @property
    def panel_size(self) -> tuple[int, int]:
        """Width and height of a panel."""
        rows, columns = self.grid
        room = 2 * self.panel_jitter + GAP
        return (self.page_size[0] // columns - room,
                (self.page_size[1] - self.title_height) // rows - room)

    def documents(self, split: str) -> int:
        """Documents of a split."""
        return getattr(self, f'{split}_documents')

    def questions(self, split: str) -> int:
        """Questions of a split."""
        return getattr(self, f'{split}_questions')
