"""Pretraining exercises on PageWorld for a policy that starts from random weights.

Each exercise is an episode of the careful expert, or a piece of one, so that
what is learned here is what supervised fine-tuning builds on:

- queries: a question -> the search for its page;
- numbers and crops: a panel's body, cut loosely -> its values, alone;
- headings: a page -> its positions and headings in reading order, then up to one or
  another that is looked for, each in a thought of its own: comparing what is read with
  what is looked for takes the most examples, and these share an image;
- episodes: a whole episode, every turn of it: the search, the headings up to the one
  that is meant, the box, what the crop says, the answer. In some the box is off,
  and is not learned: what is learned is to read whatever a box happens to show.

Reading is learned from single images first, because a policy of a million
parameters does not begin to learn it from long sequences.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from vrag_jax.corpus.pages import PageStore
from vrag_jax.data.pageworld.layout import PageSpec, PanelSpec
from vrag_jax.data.pageworld.transcripts import find_panel, read_headings, read_panel
from vrag_jax.data.records import Question
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.experts.scripted import STYLES, ExpertState, ExpertStyle, ScriptedExpert
from vrag_jax.perception.frames import Box, Frame
from vrag_jax.perception.image_ops import crop_and_zoom
from vrag_jax.rollout.driver import World, run_expert
from vrag_jax.rollout.trajectory import Trajectory

# Its boxes are off as those of a policy that is still learning to give them.
_ERRANT = ExpertStyle(margin=1, shift=2)


class PretrainingExercises:
    """Draws exercises from the training documents.

    Args:
      world: where episodes take place.
      store: the pages.
      layouts: what stands on each page, by page id.
      questions: training questions; reading uses the pages of their documents.
      margin: most encoder pixels that a crop shows around a body. It is off the
        middle by as much as it leaves room: a policy that has hardly begun to give
        boxes must be able to read what it then sees.
      max_length: most tokens of an episode.
      errant: share of episodes whose boxes are off.
      lookups: most panels of a page that one headings exercise looks for.
    """

    def __init__(
        self,
        world: World,
        store: PageStore,
        layouts: Mapping[str, PageSpec],
        questions: Sequence[Question],
        margin: float = 2.0,
        max_length: int = 1024,
        errant: float = 0.5,
        lookups: int = 3,
    ):
        self._world = world
        self._store = store
        self._questions = questions
        documents = {question.extra['document'] for question in questions}
        self._panels = [
            (page, panel) for page in layouts.values() if page.document in documents
            for panel in page.panels]
        self._numbers = [(page, panel) for page, panel in self._panels if panel.kind == 'text']
        self._layouts = layouts
        self._careful = ScriptedExpert(layouts, STYLES['careful'])
        self._errant = errant
        self._lookups = lookups
        self._margin = margin
        self._max_length = max_length

    def sample(
        self, rng: random.Random, queries: int, numbers: int, crops: int, headings: int,
        episodes: int,
    ) -> list[TokenSequence]:
        """Returns exercises.

        Args:
          rng: what they are drawn with.
          queries: how many questions whose search is written.
          numbers: how many crops of plain numbers, the easiest to read.
          crops: how many crops of panels of all kinds.
          headings: how many pages whose headings are transcribed and looked for.
          episodes: how many questions whose whole episode is played.
        """
        shown = [self._crop(rng, *rng.choice(self._numbers)) for _ in range(numbers)]
        shown += [self._crop(rng, *rng.choice(self._panels)) for _ in range(crops)]
        shown += [self._headings(rng, rng.choice(self._panels)[0]) for _ in range(headings)]
        asked = [rng.choice(self._questions) for _ in range(queries)]
        whole = [rng.choice(self._questions) for _ in range(episodes)]
        off = round(self._errant * episodes)
        errant = ScriptedExpert(self._layouts, _ERRANT, rng.getrandbits(32))
        return (self._read(shown) + [self._search(question) for question in asked]
                + [t.sequence() for t in self._play(self._careful, whole[off:])]
                + [self._without_boxes(t) for t in self._play(errant, whole[:off])])

    def _play(self, expert: ScriptedExpert, questions: Sequence[Question]) -> list[Trajectory]:
        """Whole episodes of an expert."""
        return run_expert(
            self._world, questions,
            lambda question, episode: expert.act(question, ExpertState.of(episode)),
            self._max_length)

    def _without_boxes(self, trajectory: Trajectory) -> TokenSequence:
        """A trajectory of whose turns with a box only the thoughts are learned."""
        sequence = trajectory.sequence()
        mask = sequence.loss_mask.copy()
        starts = np.flatnonzero(np.diff(trajectory.loss_mask.astype(np.int8), prepend=0) == 1)
        for start, turn in zip(starts, trajectory.turns, strict=True):
            if turn.action.kind == 'bbox':
                thought = turn.text[:turn.action.start]
                chat = self._world.chat
                mask[start + len(chat.encode(thought)):start + len(chat.reply_ids(turn.text))] = 0
        return dataclasses.replace(sequence, loss_mask=mask)

    def _read(
        self, shown: Sequence[tuple[tuple[Image.Image, Frame], list[str]]]
    ) -> list[TokenSequence]:
        """Sequences without a past: an image is observed, thoughts of it are written."""
        processed = self._world.preprocess([image for (image, _), _ in shown])
        chat = self._world.chat
        sequences = []
        for (view, thoughts), patches in zip(shown, processed, strict=True):
            episode = self._world.blank()
            episode.append_observation(chat.observation_ids('', patches.tokens), (*view, patches))
            text = ''.join(f'<think>{thought}</think>' for thought in thoughts)
            episode.append_text(chat.encode(text), sampled=True)
            sequences.append(episode.finish().sequence())
        return sequences

    def _crop(
        self, rng: random.Random, page: PageSpec, panel: PanelSpec
    ) -> tuple[tuple[Image.Image, Frame], list[str]]:
        """A loose crop of a body, and what it says."""
        _, frame = self._world.environment.page_view(page.page_id)
        box = self._loose_box(frame, panel.body_box, rng)
        image = self._store.image(page.page_id)
        view = crop_and_zoom(image, frame, box, self._world.environment.config.limits)
        return view, [read_panel(panel)]

    def _headings(
        self, rng: random.Random, page: PageSpec
    ) -> tuple[tuple[Image.Image, Frame], list[str]]:
        """A page; all its headings, of every other page; searches for some panels of it."""
        thoughts = [read_headings(page)] if rng.random() < 0.5 else []
        for panel in rng.sample(page.panels, min(self._lookups, len(page.panels))):
            goal = panel.position if rng.random() < 0.25 else panel.heading
            thoughts.append(find_panel(page, panel, goal))
        return self._world.environment.page_view(page.page_id), thoughts

    def _search(self, question: Question) -> TokenSequence:
        """The first turn of an episode."""
        episode = self._world.start(question)
        search = self._careful.act(question, ExpertState())
        episode.append_text(self._world.chat.reply_ids(search), sampled=True)
        return episode.finish().sequence()

    def _loose_box(self, frame: Frame, body: Box, rng: random.Random) -> Box:
        """A box of some margin around a body, and off its middle by up to that margin."""
        x1, y1, x2, y2 = frame.from_page(body)
        width, height = frame.box_size
        margin = self._margin * rng.random()
        right, down = (rng.uniform(-margin, margin) for _ in range(2))
        return (max(0.0, x1 - margin + right), max(0.0, y1 - margin + down),
                min(float(width), x2 + margin + right), min(float(height), y2 + margin + down))
