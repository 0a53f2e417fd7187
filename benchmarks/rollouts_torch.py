"""Worker: rollouts by a plain loop over transformers' `generate`, as the reference does it.

Every turn the whole context of all episodes under way is given anew, as one left-padded
batch, and every image in it is encoded anew. The world (search, crops, texts) is that of
vrag_jax, so both play the same episodes.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    Qwen2_5_VLForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)

from benchmarks.paired import pin, serve, threads
from benchmarks.setting import open_setting, sampled_runs
from vrag_jax.data.tokenizer import token_bytes
from vrag_jax.perception.stopping import build_stop_table
from vrag_jax.rollout.scoring import score


class ActionClosed(StoppingCriteria):
    """Says which rows have closed their action, by the automaton of vrag_jax."""

    def __init__(self, table, rows: int):
        self._transitions = torch.from_numpy(table.transitions.astype(np.int64))
        self._accepting = torch.from_numpy(table.accepting)
        self._state = torch.full((rows,), table.initial)

    def __call__(self, input_ids, scores, **_):
        self._state = self._transitions[self._state, input_ids[:, -1]]
        return self._accepting[self._state]


class Policy:
    """The exported policy in torch.

    Args:
      setting: of the benchmark.
      workdir: of the run that exported it.
    """

    def __init__(self, setting, workdir: str):
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            Path(workdir) / 'policy', dtype=torch.float32, attn_implementation='sdpa').eval()
        space = setting.space
        self.image_id = space.model_config.image_token_id
        self.end_ids = space.end_ids
        self.pad_id = space.end_ids[0]
        self.suppress = LogitsProcessorList([SuppressTokensLogitsProcessor(
            list(space.model_config.suppressed_ids), device='cpu')])
        self.table = build_stop_table(
            token_bytes(space.tokenizer, space.model_config.text.vocab_size))
        self.most = space.config.sampler.max_new_tokens
        self.max_length = space.config.sampler.max_length

    @torch.inference_mode()
    def reply(self, episodes, processed, temperature: float) -> list[np.ndarray]:
        """Samples a turn of each episode."""
        contexts = [episode.tail(0)[0] for episode in episodes]
        width = max(map(len, contexts))
        ids = torch.full((len(contexts), width), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(contexts):
            ids[row, width - len(tokens):] = torch.from_numpy(tokens.astype(np.int64))
            mask[row, width - len(tokens):] = 1
        inputs = {'input_ids': ids, 'attention_mask': mask,
                  'mm_token_type_ids': (ids == self.image_id).int()}
        if processed:
            inputs['pixel_values'] = torch.from_numpy(
                np.concatenate([image.pixel_values for image in processed]))
            inputs['image_grid_thw'] = torch.tensor([image.grid_thw for image in processed])
        drawn = {'do_sample': False} if temperature == 0 else {
            'do_sample': True, 'temperature': temperature, 'top_k': 0, 'top_p': 1.0}
        stopped = ActionClosed(self.table, len(episodes))
        out = self.model.generate(
            **inputs, **drawn, max_new_tokens=self.most, eos_token_id=self.end_ids,
            pad_token_id=self.pad_id, logits_processor=self.suppress,
            stopping_criteria=StoppingCriteriaList([stopped]))[:, width:].numpy()
        return [self._until_stop(row, self.max_length - len(tokens))
                for row, tokens in zip(out, contexts, strict=True)]

    def _until_stop(self, row: np.ndarray, room: int) -> np.ndarray:
        state = self.table.initial
        for n, token in enumerate(row[:room]):
            state = self.table.transitions[state, token]
            if self.table.accepting[state] or token in self.end_ids:
                return row[: n + 1]
        return row[:room]


def play(setting, world, policy: Policy, temperature: float, reprocess: bool):
    """Plays all episodes turn by turn.

    Args:
      setting: questions.
      world: of the episodes.
      policy: replies.
      temperature: 0 is greedy.
      reprocess: whether images go through the image processor at every turn, as they
        do where the inference engine is given pictures; otherwise only once.
    """
    episodes = [world.start(question) for question in setting.questions]
    while running := [episode for episode in episodes if not episode.done]:
        if reprocess:
            processed = world.preprocess([v.image for e in running for v in e.images])
        else:
            processed = [image for episode in running for image in episode.processed]
        turns = policy.reply(running, processed, temperature)
        for episode, tokens in zip(running, turns, strict=True):
            episode.append_text(tokens, np.zeros(len(tokens), np.float32), sampled=True)
        world.advance(
            running, [world.chat.decode(tokens.tolist()) for tokens in turns],
            [bool(tokens[-1] == world.chat.end_of_turn_id) for tokens in turns],
            policy.max_length)
    return [episode.finish() for episode in episodes]


def main(workdir: str) -> None:
    pin(threads())
    torch.set_num_threads(threads())
    setting = open_setting(workdir)
    space, world = setting.space, setting.space.world()
    policy = Policy(setting, workdir)

    def handle(temperature: float, repeat: int = 0, reprocess: bool = True,
               tokens: bool = False, **_):
        torch.manual_seed(repeat)
        started = time.perf_counter()
        trajectories = play(setting, world, policy, temperature, reprocess)
        reply = {'seconds': time.perf_counter() - started, 'trajectories': len(trajectories)}
        if tokens:
            score(trajectories, space.config.reward, space.judge)
            reply |= {'turns': [sampled_runs(t) for t in trajectories],
                      'right': sum(t.rewards['answer'] for t in trajectories)}
        return reply

    serve(handle, ['torch', 'transformers'])


if __name__ == '__main__':
    main(*sys.argv[1:])
