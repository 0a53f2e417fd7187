"""The other side of the update benchmark: the same GRPO update in torch and transformers.

It does what the reference does: rows of one trajectory each, padded to the longest of
their micro-batch, go through the whole model in each of the passes (reference log-probs,
old log-probs, loss), images and all. Started by `benchmarks.update`, under a Python
that has torch.
"""

import copy
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from benchmarks import groups, paired
from benchmarks.rollouts_torch import load_model
from benchmarks.setting import CHECKPOINT, open_run
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.learner.optimizer import learning_rate
from vrag_jax.learner.variants import KL_LIMIT, LOG_RATIO_LIMIT
from vrag_jax.models.common.pixels import patch_values
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig

MASKED = -1e30  # Logits of suppressed ids; finite, so that 0 * log 0 is 0.


@dataclasses.dataclass(frozen=True)
class Rows:
    """A micro-batch of padded rows.

    Attributes:
      inputs: of the model: tokens, mask, M-RoPE positions, patches of all images.
      trained: `[R, T - 1]` bool, where the next token was sampled.
      targets: `[N]` the sampled tokens, row after row.
      advantages, sampler: `[N]` of them.
    """

    inputs: dict[str, torch.Tensor]
    trained: torch.Tensor
    targets: torch.Tensor
    advantages: torch.Tensor
    sampler: torch.Tensor


def check(config: RunConfig) -> None:
    """Raises where the run asks for what is not written in torch here."""
    loss = config.grpo.loss
    plain = (loss.kl, loss.ratio, loss.averaging, loss.entropy_coef, loss.importance_cap)
    if plain != ('k3', 'token', 'token', 0.0, 0.0) or config.grpo.learner.algorithm != 'adamw':
        raise ValueError('only the token-mean clipped loss with k3 and AdamW can be compared')


class Updates:
    """GRPO updates on given groups, always from the same weights.

    Args:
      space: the run.
      sequences: the groups.
      lead: optimiser steps that are taken first.
    """

    def __init__(self, space: RunContext, sequences: Sequence[TokenSequence], lead: int):
        check(space.config)
        self._config = space.config
        self._model_config = space.model_config
        self._sequences = sequences
        self._micro_batch = len(sequences)
        self._rate = learning_rate(
            space.config.grpo.learner,
            max(1, space.config.grpo.steps * space.config.grpo.mini_batches))
        self._suppressed = torch.tensor(space.model_config.suppressed_ids, dtype=torch.long)
        self._reference = load_model(space.workdir / CHECKPOINT)
        self._reference.requires_grad_(False)
        self._model = load_model(space.workdir / CHECKPOINT)
        self._model.model.visual.requires_grad_(False)
        self._trainable = [p for p in self._model.parameters() if p.requires_grad]
        learner = space.config.grpo.learner
        self._optimizer = torch.optim.AdamW(
            [{'params': [p for p in self._trainable if p.ndim > 1],
              'weight_decay': learner.weight_decay},
             {'params': [p for p in self._trainable if p.ndim <= 1], 'weight_decay': 0.0}],
            lr=learner.lr, betas=(learner.b1, learner.b2), eps=learner.eps, fused=True)
        self._steps = 0
        self._lead = lead
        self._start: Any = None

    def begin(self, micro_batch: int) -> None:
        """Sets the rows of a micro-batch, and takes the first steps, once."""
        self._micro_batch = micro_batch
        # Of about one length, so that little is padded.
        ordered = sorted(self._sequences, key=len)
        self._batches = [self._rows(ordered[i : i + micro_batch])
                         for i in range(0, len(ordered), micro_batch)]
        if self._start is None:
            for _ in range(self._lead):
                self._step('learner')
            self._start = copy.deepcopy(
                (self._model.state_dict(), self._optimizer.state_dict(), self._steps))

    def update(self, old: str = 'learner') -> tuple[float, dict[str, Any]]:
        """Reference log-probs, old log-probs, loss, backward pass, optimiser step."""
        weights, moments, self._steps = self._start
        self._model.load_state_dict(weights)
        self._optimizer.load_state_dict(copy.deepcopy(moments))
        return paired.timed(lambda: self._step(old))

    def parts(self) -> tuple[float, dict[str, float]]:
        """Seconds of each part of an update; those of images are in none of the others."""
        weights, moments, self._steps = self._start
        self._model.load_state_dict(weights)
        self._optimizer.load_state_dict(copy.deepcopy(moments))
        images = 0.0
        begun: list[float] = []

        def begin(*_: Any) -> None:
            begun.append(time.perf_counter())

        def end(*_: Any) -> None:
            nonlocal images
            images += time.perf_counter() - begun.pop()

        seconds: dict[str, float] = {}

        def part(name: str, function: Callable[[], Any]) -> Any:
            before = images
            whole, result = paired.timed(function)
            seconds[name] = whole - (images - before)
            return result

        towers = [model.model.visual for model in (self._reference, self._model)]
        hooks = [hook for tower in towers for hook in (
            tower.register_forward_pre_hook(begin), tower.register_forward_hook(end))]
        try:
            ref = part('reference log-probs', lambda: self._scored(self._reference))
            old = part('old log-probs', lambda: self._scored(self._model))
            part('loss, gradients, AdamW', lambda: self._optimise(ref, old))
        finally:
            for hook in hooks:
                hook.remove()
        return sum(seconds.values()) + images, {'images': images, **seconds}

    def padding(self) -> float:
        """Share of the positions that hold no token."""
        positions = sum(rows.inputs['input_ids'].numel() for rows in self._batches)
        return 1 - sum(map(len, self._sequences)) / positions

    def _step(self, old: str) -> dict[str, float]:
        ref = self._scored(self._reference)
        given = (self._scored(self._model) if old == 'learner'
                 else [rows.sampler for rows in self._batches])
        return self._optimise(ref, given)

    def _scored(self, model: Qwen2_5_VLForConditionalGeneration) -> list[torch.Tensor]:
        """Log-probs of the sampled tokens of each micro-batch."""
        with torch.inference_mode():
            return [self._logprobs(model, rows)[0] for rows in self._batches]

    def _optimise(self, ref: Sequence[torch.Tensor], given: Sequence[torch.Tensor]
                  ) -> dict[str, float]:
        """Loss, backward pass and optimiser step, from reference and old log-probs."""
        loss, total = self._config.grpo.loss, sum(len(rows.targets) for rows in self._batches)
        sums = dict.fromkeys(('loss', 'policy_loss', 'kl', 'entropy', 'ratio'), 0.0)
        for rows, old_logprobs, ref_logprobs in zip(self._batches, given, ref, strict=True):
            logprobs, entropy = self._logprobs(self._model, rows)
            ratio = (logprobs - old_logprobs.clone()).clamp(
                -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
            clipped = ratio.clamp(1 - loss.clip_low, 1 + loss.clip_high)
            policy = -torch.minimum(ratio * rows.advantages, clipped * rows.advantages)
            log_ratio = (ref_logprobs.clone() - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
            kl = (log_ratio.exp() - log_ratio - 1).clamp(-KL_LIMIT, KL_LIMIT)
            value = (policy + loss.kl_coef * kl).sum() / total
            value.backward()
            for name, each in (('loss', value * total), ('policy_loss', policy), ('kl', kl),
                               ('entropy', entropy), ('ratio', ratio)):
                sums[name] += float(each.detach().sum()) / total
        norm = torch.nn.utils.clip_grad_norm_(self._trainable, self._config.grpo.learner.clip_norm)
        for group in self._optimizer.param_groups:
            group['lr'] = float(self._rate(self._steps))
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps += 1
        return {**sums, 'grad_norm': float(norm)}

    def _logprobs(self, model: Qwen2_5_VLForConditionalGeneration, rows: Rows
                  ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs of the sampled tokens, and entropies without a gradient, `[N]` each."""
        hidden = model.model(**rows.inputs, use_cache=False)[0]
        # Logits only where they are needed.
        logits = model.lm_head(hidden[:, :-1][rows.trained])
        logits = (logits / self._config.grpo.sampling.temperature).index_fill(
            1, self._suppressed, MASKED)
        log_p = logits.log_softmax(dim=-1)
        plain = log_p.detach()
        entropy = -(plain.exp() * plain).sum(dim=-1)
        return log_p.gather(1, rows.targets[:, None])[:, 0], entropy

    def _rows(self, sequences: Sequence[TokenSequence]) -> Rows:
        """Pads sequences on the right to the longest."""
        def padded(values: Iterator[np.ndarray], fill: int) -> torch.Tensor:
            out = np.full((len(sequences), width), fill)
            for row, value in enumerate(values):
                out[row, : len(value)] = value
            return torch.from_numpy(out)

        def picked(values: Iterator[np.ndarray | None]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([
                value[1:][s.loss_mask[1:] > 0] for value, s in zip(values, sequences, strict=True)
                if value is not None]))

        width = max(map(len, sequences))
        tokens = padded((s.tokens for s in sequences), self._model_config.bos_token_id)
        mask = padded((np.ones(len(s), np.int64) for s in sequences), 0)
        images = [image for s in sequences for image in s.images]
        seen: dict[str, torch.Tensor] = {}
        if images:
            vision = self._model_config.vision
            seen = {'pixel_values': torch.from_numpy(patch_values(
                        np.concatenate([image.patches for image in images]), vision.pixels,
                        vision.temporal_patch_size)),
                    'image_grid_thw': torch.tensor([image.grid_thw for image in images])}
        positions, _ = self._model.model.get_rope_index(
            tokens, (tokens == self._model_config.image_token_id).int(),
            seen.get('image_grid_thw'), attention_mask=mask)
        ours = np.concatenate([s.position_ids for s in sequences], axis=1)
        if not np.array_equal(positions[:, mask.bool()].numpy(), ours):
            raise ValueError("transformers' M-RoPE positions are not those of the trajectories")
        return Rows(
            inputs={'input_ids': tokens, 'attention_mask': mask, 'position_ids': positions,
                    **seen},
            trained=padded((s.loss_mask.astype(np.int64) for s in sequences), 0)[:, 1:].bool(),
            targets=picked(s.tokens.astype(np.int64) for s in sequences),
            advantages=picked(s.advantages for s in sequences),
            sampler=picked(s.old_logprobs for s in sequences))


def fastest(updates: Updates, threads: int, micro_batches: Sequence[int]) -> tuple[int, int]:
    """Warms up, and leaves the threads and rows of a micro-batch that are fastest."""
    seconds = {}
    for count, rows in itertools.product(sorted({1, threads}), micro_batches):
        torch.set_num_threads(count)
        updates.begin(rows)
        updates.update()
        seconds[count, rows] = updates.update()[0]
    best = min(seconds, key=lambda key: seconds[key])
    torch.set_num_threads(best[0])
    updates.begin(best[1])
    return best


def main() -> None:
    options = json.loads(sys.argv[1])
    space = open_run(Path(options['workdir']), Path(options['config']))
    sequences = groups.load_sequences(Path(options['groups']))
    updates = Updates(space, sequences, options['lead'])
    threads, micro_batch = fastest(updates, options['threads'], options['micro_batches'])
    facts = {**paired.versions('torch', 'transformers', 'numpy'), 'threads': threads,
             'micro_batch': micro_batch, 'padding': updates.padding(), 'attention': 'sdpa',
             'dtype': 'float32', 'groups': groups.facts(sequences)}
    paired.serve({'update': updates.update, 'parts': updates.parts}, facts)


if __name__ == '__main__':
    main()
