"""Worker: the same GRPO update in torch, done as the reference does it.

Rows are padded to the longest of the mini-batch; the reference's, the old and the
updating pass each encode every image of their rows anew; the vision tower is frozen.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from benchmarks.paired import pin, serve, threads
from benchmarks.update_data import load

ROWS = 16  # A micro-batch.
CLIP_LOW, CLIP_HIGH, KL_COEF, KL_LIMIT = 0.2, 0.28, 0.01, 10.0
LR, BETAS, EPS, DECAY, CLIP_NORM = 3e-4, (0.9, 0.98), 1e-8, 0.01, 1.0


def load_model(workdir: str) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        Path(workdir) / 'policy', dtype=torch.float32, attn_implementation='sdpa').eval()


class MicroBatch:
    """Padded rows as the model takes them."""

    def __init__(self, sequences, images, width: int, image_id: int):
        shape = (len(sequences), width)
        self.tokens = torch.zeros(shape, dtype=torch.long)
        self.real = torch.zeros(shape, dtype=torch.long)
        self.mask, self.advantages = torch.zeros(shape), torch.zeros(shape)
        for row, sequence in enumerate(sequences):
            n = len(sequence['tokens'])
            self.tokens[row, :n] = torch.from_numpy(sequence['tokens'].astype(np.int64))
            self.real[row, :n] = 1
            self.mask[row, :n] = torch.from_numpy(sequence['loss_mask'])
            self.advantages[row, :n] = torch.from_numpy(sequence['advantages'])
        shown = [images[i] for sequence in sequences for i in sequence['images']]
        self.inputs = {'input_ids': self.tokens, 'attention_mask': self.real,
                       'mm_token_type_ids': (self.tokens == image_id).int()}
        if shown:
            self.inputs['pixel_values'] = torch.from_numpy(np.concatenate([p for p, _ in shown]))
            self.inputs['image_grid_thw'] = torch.from_numpy(np.stack([g for _, g in shown]))

    def logprobs(self, model, suppressed: list[int]) -> torch.Tensor:
        """`[B, T - 1]` log-probs of the tokens from the second on."""
        logits = model(**self.inputs, use_cache=False).logits[:, :-1]
        logits = logits.index_fill(-1, torch.tensor(suppressed), -1e30)
        return torch.log_softmax(logits, -1).gather(-1, self.tokens[:, 1:, None])[..., 0]


def main(workdir: str, file: str, suppressed: str) -> None:
    pin(threads())
    torch.set_num_threads(threads())
    sequences, images = load(file)
    hidden = [int(i) for i in suppressed.split(',')]
    model, reference = load_model(workdir), load_model(workdir)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.01)
    for parameter in model.model.visual.parameters():
        parameter.requires_grad = False
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{'params': [p for p in trained if p.ndim > 1], 'weight_decay': DECAY},
         {'params': [p for p in trained if p.ndim == 1], 'weight_decay': 0.0}],
        lr=LR, betas=BETAS, eps=EPS)
    width = max(len(s['tokens']) for s in sequences)
    batches = [MicroBatch(sequences[i : i + ROWS], images, width, model.config.image_token_id)
               for i in range(0, len(sequences), ROWS)]
    total = sum(batch.mask[:, 1:].sum() for batch in batches)

    def handle(old: bool = True, **_):
        started = time.perf_counter()
        with torch.no_grad():
            refs = [batch.logprobs(reference, hidden) for batch in batches]
            olds = [batch.logprobs(model, hidden) for batch in batches] if old else [None] * len(
                batches)
        optimizer.zero_grad()
        loss_sum = kl_sum = 0.0
        for batch, ref, before in zip(batches, refs, olds, strict=True):
            logp = batch.logprobs(model, hidden)
            before = logp.detach() if before is None else before
            mask, advantages = batch.mask[:, 1:], batch.advantages[:, 1:]
            ratio = torch.exp(logp - before)
            clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
            policy = -torch.minimum(ratio * advantages, clipped * advantages)
            difference = ref - logp
            kl = (torch.exp(difference) - difference - 1).clamp(-KL_LIMIT, KL_LIMIT)
            loss = ((policy + KL_COEF * kl) * mask).sum() / total
            loss.backward()
            loss_sum += float(loss)
            kl_sum += float((kl * mask).sum() / total)
        norm = torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        return {'seconds': time.perf_counter() - started, 'loss': loss_sum, 'kl': kl_sum,
                'grad_norm': float(norm), 'trajectories': len(sequences)}

    serve(handle, ['torch', 'transformers'])


if __name__ == '__main__':
    main(*sys.argv[1:])
