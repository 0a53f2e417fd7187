"""The rules that actions follow: how much is searched, how images are cut and sized."""

import dataclasses

from vrag_jax.perception.image_ops import PixelLimits


@dataclasses.dataclass(frozen=True)
class ActionRules:
    """Settings of the actions.

    Attributes:
      search_results: hits looked through for the first page not yet shown.
      search_chars: characters of a search query, at most; a longer one is an invalid
        action. A search service has a limit, too (`ServiceLimits.query_chars`).
      min_pixels, max_pixels: bounds of an image's area as the encoder sees it; by default
        256 to 512 tokens of a policy with the default `factor`.
      factor: the policy's: sides of an image are multiples of so many pixels.
      two_step_sizes: whether boxes are in the frame of an intermediate size, as in the
        reference's code; see `PixelLimits.two_steps`.
      padding: encoder pixels by which a chosen box is widened on each side.
      allow_image_index: whether `<bbox image="k">` may name an earlier image.
    """

    search_results: int = 10
    search_chars: int = 2048
    min_pixels: int = 200_704
    max_pixels: int = 401_408
    factor: int = 28
    two_step_sizes: bool = False
    padding: int = 0
    allow_image_index: bool = False

    def __post_init__(self):
        for name in ('search_results', 'search_chars'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f'need 0 < min_pixels <= max_pixels, got {self.min_pixels} and {self.max_pixels}')
        if self.padding < 0:
            raise ValueError(f'padding must not be negative, got {self.padding}')

    @property
    def limits(self) -> PixelLimits:
        return PixelLimits(self.min_pixels, self.max_pixels, self.factor, self.two_step_sizes)
