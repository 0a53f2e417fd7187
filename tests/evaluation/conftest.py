"""Made-up trajectories: what was asked, done and seen is given, the tensors are empty."""

import hashlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vrag_jax.actions.grammar import parse_action
from vrag_jax.data.records import Evidence, Question
from vrag_jax.perception.frames import Frame
from vrag_jax.rollout.trajectory import ImageView, Trajectory, Turn


def view(page_id, size, region=None, page_size=(448, 448)):
    """An image of one colour, with a line so that it is not quite."""
    frame = Frame(page_id, page_size, region or (0, 0, *page_size), size)
    image = Image.new('RGB', size, '#ddeeff')
    ImageDraw.Draw(image).line((0, 0, *size), '#334455')
    key = hashlib.sha256(f'{frame}'.encode()).hexdigest()[:16]
    return ImageView(key, image, frame, token_start=0)


def make_trajectory(turns, images=(), answer=None, **fields):
    """A trajectory from its texts.

    Args:
      turns: (text of the policy, observation, image index, pages retrieved) each.
      images: what `view` returns, in order.
      answer: the last answer.
      fields: of the question; 'rewards' and 'truncated' of the trajectory.
    """
    rewards = fields.pop('rewards', {'answer': 0.0, 'total': 0.0})
    truncated = fields.pop('truncated', False)
    question = Question(**{'uid': 'q1', 'query': 'How many?', 'answer': '472'} | fields)
    done = [Turn(text, parse_action(text), observation, image, retrieved)
            for text, observation, image, retrieved in turns]
    empty = np.zeros(0, np.int32)
    return Trajectory(
        question=question, prompt=question.query, tokens=empty, loss_mask=empty > 0,
        position_ids=np.zeros((3, 0), np.int32), logprobs=np.zeros(0, np.float32),
        image_index=empty, images=list(images), processed=[], turns=done, answer=answer,
        finished=answer is not None, truncated=truncated,
        retrieved=[page for turn in done for page in turn.retrieved], rewards=rewards)


SEARCH = ('<think>market</think><search>velora market</search>', '', 0, ('velora_3',))
ZOOM = ('<think>K top right</think><bbox>[61, 30, 92, 47]</bbox>', '', 1, ())
INVALID = ('<think>hm</think><bbox>[1, 2]</bbox>', 'That was not a valid action.', None, ())


@pytest.fixture(scope='session')
def zooming():
    """Search, zoom, right answer."""
    return make_trajectory(
        [SEARCH, ZOOM, ('<think>472</think><answer>472</answer>', '', None, ())],
        [view('velora_3', (112, 112)), view('velora_3', (112, 56), (244, 120, 368, 188))],
        answer='472', uid='zooming', page_ids=('velora_3',), source_type='Chart',
        query_type='Single-Hop', evidence=(Evidence('velora_3', (248, 124, 364, 184)),),
        rewards={'retrieval': 1.0, 'answer': 1.0, 'pattern': 1.0, 'total': 1.0})


@pytest.fixture(scope='session')
def hasty():
    """An invalid turn, search, wrong answer."""
    return make_trajectory(
        [INVALID, SEARCH, ('<think>4</think><answer>478</answer>', '', None, ())],
        [view('velora_3', (112, 112))], answer='478', uid='hasty',
        page_ids=('velora_3', 'velora_4'), source_type='Text, Table', query_type='Multi-Hop',
        rewards={'retrieval': 0.6, 'answer': 0.0, 'pattern': 0.0, 'total': 0.0})


@pytest.fixture(scope='session')
def silent():
    """Searched, found nothing, never answered."""
    return make_trajectory(
        [('<search>velora</search>', 'nothing new', None, ())], uid='silent',
        page_ids=('velora_3',), source_type='Text', query_type='Single-Hop', truncated=True,
        rewards={'retrieval': 0.0, 'answer': 0.0, 'pattern': 0.0, 'total': 0.0})
