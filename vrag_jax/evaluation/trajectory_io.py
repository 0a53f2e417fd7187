"""Trajectories on disk: what was said and seen, without tokens, for people to look at."""

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vrag_jax.actions.registry import label
from vrag_jax.evaluation.summary import is_correct
from vrag_jax.perception.frames import Box
from vrag_jax.rollout.trajectory import ImageView, Trajectory, Turn

FILE = 'trajectories.jsonl'
LOSSLESS_PIXELS = 256 * 256  # larger images are stored as JPEG


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """An image as the policy saw it.

    Attributes:
      file: path relative to the folder of the trajectories.
      page_id: the page that it shows.
      size: width and height in the pixels of boxes.
      whole_page: whether it shows the page and not a region of it.
      evidence: boxes that show the answer, in pixels of `size`; they may
        reach beyond it.
    """

    file: str
    page_id: str
    size: tuple[int, int]
    whole_page: bool
    evidence: tuple[Box, ...]


@dataclasses.dataclass(frozen=True)
class TurnRecord:
    """One turn.

    Attributes:
      kind: tag of the action, or 'invalid'.
      thought: what was thought.
      text: the query, the answer, what else stands inside the tag, or the raw text of an
        invalid turn.
      box: the chosen box, in pixels of the image it is on.
      box_image: index of the image that the box is on.
      reason: why the action is invalid.
      observation: text shown back.
      image: index of the image shown back.
      retrieved: ids of the pages that a search brought.
    """

    kind: str
    thought: str
    text: str
    box: Box | None
    box_image: int | None
    reason: str
    observation: str
    image: int | None
    retrieved: tuple[str, ...]

    @property
    def label(self) -> str:
        """Heading of the turn."""
        return label(self.kind)


@dataclasses.dataclass(frozen=True)
class TrajectoryRecord:
    """A trajectory as people look at it.

    Attributes:
      folder: where the image files lie.
      uid, question, reference, source_type, query_type: of the question.
      answer: what was answered, None without an answer.
      correct: whether the judge takes this for right.
      truncated: whether the token limit cut it off.
      rewards: parts of the reward and 'total'.
      turns: what happened.
      images: what was seen.
    """

    folder: Path
    uid: str
    question: str
    reference: str
    source_type: str
    query_type: str
    answer: str | None
    correct: bool
    truncated: bool
    rewards: dict[str, float]
    turns: tuple[TurnRecord, ...]
    images: tuple[ImageRecord, ...]

    def image_path(self, index: int) -> Path:
        """Returns the file of an image."""
        return self.folder / self.images[index].file

    def boxes_on(self, index: int) -> list[tuple[int, Box]]:
        """Returns (turn from 1, box) of every box chosen on an image."""
        return [(number, turn.box) for number, turn in enumerate(self.turns, start=1)
                if turn.box is not None and turn.box_image == index]


def select(trajectories: Sequence[Trajectory], count: int) -> list[Trajectory]:
    """Picks trajectories that show a method as it is, the same ones every time.

    Wrong ones get their share of the places (at least one if there are any); each
    kind of question comes up as evenly as there are trajectories of it.

    Args:
      trajectories: what to pick from.
      count: how many.

    Returns:
      At most `count` trajectories: the right ones, then the wrong ones.
    """
    right = [t for t in trajectories if is_correct(t)]
    wrong = [t for t in trajectories if not is_correct(t)]
    places = round(count * len(wrong) / max(len(trajectories), 1))
    places = max(places, min(1, len(wrong)), count - len(right))
    return _spread(right, count - places) + _spread(wrong, places)


def _spread(trajectories: Sequence[Trajectory], count: int) -> list[Trajectory]:
    """Takes in turn from each kind of question."""
    kinds: dict[tuple[str, str], list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        kinds[trajectory.question.query_type, trajectory.question.source_type].append(trajectory)
    taken = []
    for depth in range(max(map(len, kinds.values()), default=0)):
        taken += [group[depth] for _, group in sorted(kinds.items()) if depth < len(group)]
    return taken[:max(count, 0)]


def save_trajectories(folder: Path, trajectories: Sequence[Trajectory]) -> None:
    """Writes trajectories and the images they saw.

    Args:
      folder: gets `trajectories.jsonl` and `images/`; an image that several
        trajectories saw is stored once.
      trajectories: what to write, with their images; the file is replaced.

    Raises:
      ValueError: if an image was not kept, or a trajectory has not been scored.
    """
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_to_json(folder, t), ensure_ascii=False) + '\n' for t in trajectories]
    part = folder / (FILE + '.part')
    part.write_text(''.join(lines), encoding='utf-8')
    os.replace(part, folder / FILE)


def load_trajectories(folder: Path) -> list[TrajectoryRecord]:
    """Reads what `save_trajectories` wrote.

    Raises:
      FileNotFoundError: if the file or an image is missing.
      ValueError: if a line is not a trajectory; names file, line and field.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no trajectories here')
    records = []
    # Not splitlines(), which splits at characters that may stand in JSON as they are.
    with path.open(encoding='utf-8') as lines:
        for number, line in enumerate(lines, start=1):
            try:
                records.append(_from_json(folder, json.loads(line)))
            except (TypeError, KeyError, json.JSONDecodeError) as error:
                raise ValueError(f'{path}, line {number}: not a trajectory: {error}') from error
    for record in records:
        for index in range(len(record.images)):
            if not record.image_path(index).is_file():
                raise FileNotFoundError(f'{record.image_path(index)}: an image of '
                                        f'trajectory {record.uid} is missing')
    return records


def _to_json(folder: Path, trajectory: Trajectory) -> dict[str, Any]:
    question = trajectory.question
    images_before = 0
    turns = []
    for turn in trajectory.turns:
        turns.append(dataclasses.asdict(_turn_record(turn, images_before)))
        images_before += turn.image is not None
    return {
        'uid': question.uid,
        'question': question.query,
        'reference': question.answer,
        'source_type': question.source_type,
        'query_type': question.query_type,
        'answer': trajectory.answer,
        'correct': is_correct(trajectory),
        'truncated': trajectory.truncated,
        'rewards': {name: float(value) for name, value in trajectory.rewards.items()},
        'turns': turns,
        'images': [dataclasses.asdict(_save_image(folder, view, trajectory))
                   for view in trajectory.images],
    }


def _turn_record(turn: Turn, images_before: int) -> TurnRecord:
    action = turn.action
    box_image = None
    if action.box is not None and images_before:
        # A box names its image from 1; without a name it is on the last one.
        chosen = (action.image or images_before) - 1
        box_image = chosen if chosen < images_before else None
    invalid = action.kind == 'invalid'
    return TurnRecord(
        kind=action.kind, thought=action.thought,
        text=turn.text if invalid else action.text,
        box=action.box, box_image=box_image, reason=action.reason,
        observation=turn.observation, image=turn.image, retrieved=turn.retrieved)


def _save_image(folder: Path, view: ImageView, trajectory: Trajectory) -> ImageRecord:
    if view.image is None:
        raise ValueError(f'question {trajectory.question.uid}: an image of {view.frame.page_id} '
                         'was not kept; make it again from its frame')
    lossless = view.image.width * view.image.height <= LOSSLESS_PIXELS
    file = f'images/{view.key}.{"png" if lossless else "jpg"}'
    if not (folder / file).exists():
        _write_image(view.image, folder / file)
    evidence = tuple(view.frame.from_page(item.bbox) for item in trajectory.question.evidence
                     if item.page_id == view.frame.page_id)
    frame = view.frame
    return ImageRecord(file, frame.page_id, frame.box_size, frame.shows_whole_page, evidence)


def _write_image(image: Image.Image, path: Path) -> None:
    part = path.with_suffix('.part')
    if path.suffix == '.png':
        image.save(part, format='PNG', optimize=True)
    else:
        image.save(part, format='JPEG', quality=85)
    os.replace(part, path)


def _from_json(folder: Path, data: dict[str, Any]) -> TrajectoryRecord:
    turns = tuple(
        TurnRecord(**turn | {
            'box': tuple(turn['box']) if turn['box'] else None,
            'retrieved': tuple(turn['retrieved'])})
        for turn in data['turns'])
    images = tuple(
        ImageRecord(**image | {
            'size': tuple(image['size']),
            'evidence': tuple(tuple(box) for box in image['evidence'])})
        for image in data['images'])
    return TrajectoryRecord(**data | {'folder': folder, 'turns': turns, 'images': images})
