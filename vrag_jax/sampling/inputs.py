"""Empty inputs of the sampler's programs, to be filled in."""

import numpy as np

from vrag_jax.sampling.programs import DecodeInputs, PrefillInputs
from vrag_jax.sampling.slots import SamplerConfig


def prefill_inputs(
    shards: int, rows: int, width: int, blocks: int, past_end: int
) -> PrefillInputs:
    """Returns no chunks.

    Args:
      shards: parts of the cache.
      rows: chunks that there may be; as many more as it takes to split over the shards.
      width: tokens of a chunk.
      blocks: that attention reads of what a row has cached.
      past_end: a place past the end of a part of the cache.
    """
    rows = -(-rows // shards) * shards
    return PrefillInputs(
        table=np.zeros((shards, rows // shards, blocks), np.int32),
        lengths=np.zeros(rows, np.int32),
        places=np.full((rows, width), past_end, np.int32),
        tokens=np.zeros((rows, width), np.int32),
        position_ids=np.zeros((3, rows, width), np.int32),
        image_index=np.full((rows, width), -1, np.int32))


def decode_inputs(
    config: SamplerConfig, shards: int, slots: int, blocks: int, past_end: int
) -> DecodeInputs:
    """Returns no requests; arguments as of `prefill_inputs`."""
    rows = -(-slots // shards) * shards
    ints = {name: np.zeros(rows, np.int32)
            for name in ('lengths', 'pending', 'positions', 'automaton', 'budgets')}
    history = np.full((rows, config.max_length), -1, np.int32) if config.draft_tokens else None
    return DecodeInputs(
        table=np.zeros((shards, rows // shards, blocks), np.int32),
        places=np.full((rows, config.recent_tokens), past_end, np.int32),
        seeds=np.zeros(rows, np.uint32), stop_after=np.ones((), np.int32), history=history, **ints)
