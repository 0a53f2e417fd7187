"""The other side of the rollout benchmark: a plain loop over `transformers` `generate`.

It does what the reference does: in every turn the whole context of every episode that
still runs is given anew, all its images are encoded again, and the keys and values live
only inside the turn's `generate`. Started by `benchmarks.rollouts`, under a Python that
has torch.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    Qwen2_5_VLForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
)

from benchmarks import paired
from benchmarks.setting import CHECKPOINT, grouped_questions, open_run
from vrag_jax.actions.stopping import StopTable, build_stop_table
from vrag_jax.data.records import Question
from vrag_jax.models.common.images import ProcessedImage
from vrag_jax.models.common.pixels import patch_values
from vrag_jax.models.common.tokenizer import token_bytes
from vrag_jax.rollout.episode import Episode
from vrag_jax.run.context import RunContext


def load_model(directory: Path) -> Qwen2_5_VLForConditionalGeneration:
    """Loads an exported policy in float32 with fused attention."""
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, attn_implementation='sdpa').eval()


def fastest_threads(most: int, run: Callable[[], Any]) -> int:
    """Warms up, and leaves torch with as many threads as it is fastest with, 1 or `most`.

    The products of a small policy can take longer shared by threads than alone.
    """
    seconds = {}
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        run()
        seconds[threads] = paired.timed(run)[0]
    best = min(seconds, key=lambda threads: seconds[threads])
    torch.set_num_threads(best)
    return best


class Suppress(LogitsProcessor):
    """Masks ids that are never predicted."""

    def __init__(self, ids: Sequence[int], vocab_size: int):
        self._mask = torch.zeros(vocab_size, dtype=torch.bool)
        self._mask[list(ids)] = True

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(self._mask, -torch.inf)


class TurnEnds(StoppingCriteria):
    """Ends a row at its action's closing tag, at an end token or at its budget.

    Args:
      table: automaton over token ids that finds the closing tag.
      end_ids: ids that end a turn by themselves.
      budgets: most new tokens of each row.
    """

    # Makes `generate` feed padding to rows that have ended.
    eos_token_id = -1

    def __init__(self, table: StopTable, end_ids: Sequence[int], budgets: Sequence[int]):
        self._transitions = torch.from_numpy(table.transitions.astype(np.int64))
        self._accepting = torch.from_numpy(table.accepting)
        self._end_ids = torch.tensor(list(end_ids))
        self._budgets = torch.tensor(list(budgets))
        self._states = torch.full_like(self._budgets, table.initial)
        self.over = torch.zeros_like(self._budgets, dtype=torch.bool)
        self.counts = torch.zeros_like(self._budgets)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        last = input_ids[:, -1]
        self.counts += ~self.over
        self._states = self._transitions[self._states, last]
        self.over |= (self._accepting[self._states] | torch.isin(last, self._end_ids)
                      | (self.counts >= self._budgets))
        return self.over


class GenerateLoop:
    """Plays episodes with `generate`, all that still run as one batch.

    Args:
      space: the run: world, tokenizer, sizes.
    """

    def __init__(self, space: RunContext):
        self._space = space
        self._world = space.world()
        self._config = space.config.sampler
        self.model = load_model(space.workdir / CHECKPOINT)
        vocab_size = space.model_config.text.vocab_size
        self._table = build_stop_table(token_bytes(space.tokenizer, vocab_size), space.actions)
        self._suppress = Suppress(space.model_config.suppressed_ids, vocab_size)

    @torch.inference_mode()
    def play(self, questions: Sequence[Question], temperature: float, seed: int,
             reprocess: bool = True) -> list[Episode]:
        """Plays one episode a question to its end.

        Args:
          questions: one episode each.
          temperature: divides the logits; 0 is greedy.
          seed: of torch's generator.
          reprocess: whether an image goes through the image processor in every turn, as
            it does where an inference engine is given pictures, and not only once.
        """
        torch.manual_seed(seed)
        episodes = [self._world.start(question) for question in questions]
        running = episodes
        while running:
            turns = self._generate(running, temperature, reprocess)
            texts, stops = [], []
            for episode, tokens in zip(running, turns, strict=True):
                episode.append_text(tokens, sampled=True)
                texts.append(self._world.chat.decode(tokens))
                stops.append('end_of_turn' if tokens[-1] in self._space.end_ids else '')
            self._world.advance(
                self._world.read(running, texts, stops), self._config.max_length)
            running = [episode for episode in running if not episode.done]
        return episodes

    def _generate(self, episodes: Sequence[Episode], temperature: float,
                  reprocess: bool) -> list[list[int]]:
        """Samples one turn of each episode."""
        processed = [image for episode in episodes for image in episode.processed]
        if reprocess:
            processed = self._world.preprocess(
                [view.image for episode in episodes for view in episode.images
                 if view.image is not None])
        inputs = self._inputs([episode.tail(0)[0] for episode in episodes], processed)
        budgets = [min(self._config.max_new_tokens, self._config.max_length - len(episode))
                   for episode in episodes]
        ends = TurnEnds(self._table, self._space.end_ids, budgets)
        sampling: dict[str, Any] = {'do_sample': False}
        if temperature:
            sampling = {'do_sample': True, 'temperature': temperature, 'top_k': 0, 'top_p': 1.0}
        output = self.model.generate(
            **inputs, max_new_tokens=max(budgets), eos_token_id=None,
            pad_token_id=self._space.model_config.bos_token_id,
            logits_processor=LogitsProcessorList([self._suppress]),
            stopping_criteria=StoppingCriteriaList([ends]), **sampling)
        new = output[:, inputs['input_ids'].shape[1]:].tolist()
        return [row[:count] for row, count in zip(new, ends.counts.tolist(), strict=True)]

    def _inputs(self, contexts: Sequence[np.ndarray],
                images: Sequence[ProcessedImage]) -> dict[str, torch.Tensor]:
        """Returns left-padded contexts, and the patches of all images in them."""
        width = max(map(len, contexts))
        tokens = np.full((len(contexts), width), self._space.model_config.bos_token_id, np.int64)
        mask = np.zeros((len(contexts), width), np.int64)
        for row, context in enumerate(contexts):
            tokens[row, width - len(context):] = context
            mask[row, width - len(context):] = 1
        inputs = {
            'input_ids': torch.from_numpy(tokens), 'attention_mask': torch.from_numpy(mask),
            'mm_token_type_ids': torch.from_numpy(
                (tokens == self._space.model_config.image_token_id).astype(np.int32))}
        if images:
            vision = self._space.model_config.vision
            inputs['pixel_values'] = torch.from_numpy(patch_values(
                np.concatenate([image.patches for image in images]), vision.pixels,
                vision.temporal_patch_size))
            inputs['image_grid_thw'] = torch.tensor([image.grid_thw for image in images])
        return inputs

    @torch.inference_mode()
    def margin(self, episode: Episode, position: int, tokens: Sequence[int]) -> list[float]:
        """Returns the logits, in float64, of tokens at a position of an episode."""
        context = episode.tail(0)[0][:position]
        shown = sum(view.token_start < position for view in episode.images)
        inputs = self._inputs([context], episode.processed[:shown])
        model = load_model(self._space.workdir / CHECKPOINT).double()
        if 'pixel_values' in inputs:
            inputs['pixel_values'] = inputs['pixel_values'].double()
        logits = model(**inputs, use_cache=False).logits[0, -1]
        return [float(logits[token]) for token in tokens]


def main() -> None:
    options = json.loads(sys.argv[1])
    space = open_run(Path(options['workdir']), Path(options['config']))
    loop = GenerateLoop(space)
    last: list[Episode] = []

    def play(prompts: int, group_size: int, temperature: float, seed: int = 0,
             reprocess: bool = True, together: bool = True):
        questions = grouped_questions(space, prompts, group_size)
        batches = [questions] if together else [[question] for question in questions]
        seconds, episodes = paired.timed(lambda: [
            episode for batch in batches
            for episode in loop.play(batch, temperature, seed, reprocess)])
        last[:] = episodes
        return seconds, [episode.tail(0)[0].tolist() for episode in episodes]

    def margins(places: list[list[int]]):
        """Logits of `[episode, position, token, token]` of the last run."""
        return paired.timed(lambda: [
            loop.margin(last[episode], position, tokens) for episode, position, *tokens in places])

    sampled = {'prompts': options['prompts'], 'group_size': options['group_size'],
               'temperature': 1.0}
    threads = fastest_threads(options['threads'], lambda: play(**sampled))
    facts = {**paired.versions('torch', 'transformers', 'numpy', 'jax'), 'threads': threads,
             'attention': 'sdpa', 'dtype': 'float32'}
    paired.serve({'play': play, 'margins': margins}, facts)


if __name__ == '__main__':
    main()
