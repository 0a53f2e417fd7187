"""What an action shows back to the policy, and the texts around it."""

import dataclasses

from PIL import Image

from vrag_jax.perception.frames import Frame

IMAGE_MARK = '<image>'
"""Stands for an image in a text."""


@dataclasses.dataclass(frozen=True)
class Messages:
    """Texts of the observations.

    Attributes:
      page: around a page that a search brings, which `<image>` stands for.
      crop: around a region that was zoomed into, likewise.
      invalid: after an invalid action; may hold `{reason}`, and `{actions}` for what can be done.
      nothing_new: after a search whose hits were all shown before.
      answer_now: before the last turn: in front of an image and its text, after any other
        text; '' says nothing.
    """

    page: str = IMAGE_MARK
    crop: str = IMAGE_MARK
    invalid: str = ('That was not a valid action ({reason}). Think inside <think> and </think>, '
                    'then do exactly one thing: {actions}.')
    nothing_new: str = 'The search found no page that you have not seen yet.'
    answer_now: str = 'This is your last turn: answer now inside <answer> and </answer>.'

    def __post_init__(self):
        for name in ('page', 'crop'):
            if getattr(self, name).count(IMAGE_MARK) != 1:
                raise ValueError(
                    f"{name} must hold '{IMAGE_MARK}' once, got {getattr(self, name)!r}")


@dataclasses.dataclass(frozen=True)
class Observation:
    """Answer of the environment to an action.

    Attributes:
      text: text shown back, before the image if there is one.
      view: image and frame shown back, or None.
      text_after: text after the image.
      retrieved: ids of the pages that a search brought.
      done: whether the episode is over.
    """

    text: str = ''
    view: tuple[Image.Image, Frame] | None = None
    text_after: str = ''
    retrieved: tuple[str, ...] = ()
    done: bool = False

    @classmethod
    def of_image(cls, view: tuple[Image.Image, Frame], message: str = IMAGE_MARK,
                 retrieved: tuple[str, ...] = ()) -> 'Observation':
        """Returns one that shows an image where `message` holds `<image>`."""
        before, _, after = message.partition(IMAGE_MARK)
        return cls(before, view, after, retrieved)
