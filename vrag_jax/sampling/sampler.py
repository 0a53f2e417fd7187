"""A sampler whose KV cache lives across turns: prefill what is new, then decode.

The cache has a fixed number of slots (rows). `prefill` appends ragged chunks of
new tokens to some rows; `decode` samples in one device loop until every active
row has closed an action, ended its turn, or used up its budget. The end of an
action is found on the device by the automaton of `perception.stopping`, so the
host is not in the loop, whatever the tokenizer.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vrag_jax.models.config import ModelConfig
from vrag_jax.models.parameters import Params, merge
from vrag_jax.models.qwen2_5_vl import Qwen2_5_VL
from vrag_jax.perception.stopping import StopTable
from vrag_jax.sampling.distribution import SamplingConfig, draw
from vrag_jax.sampling.slots import SamplerConfig, SlotState, abstract_slots, init_slots

RUNNING, ACTION, ENDED, LENGTH = range(4)
STOP_REASONS = {ACTION: 'action', ENDED: 'end_of_turn', LENGTH: 'length'}


@dataclasses.dataclass(frozen=True)
class Chunk:
    """New tokens for a slot.

    Attributes:
      tokens: `[n]` int32.
      position_ids: `[3, n]` int32.
      image_index: `[n]` int32 rows of the feature buffer, -1 on text.
    """

    tokens: np.ndarray
    position_ids: np.ndarray
    image_index: np.ndarray


@dataclasses.dataclass(frozen=True)
class DecodeRequest:
    """What a slot needs in order to sample its next turn.

    Attributes:
      seed: seed of the episode; its samples depend on it and on nothing else.
      next_position: M-RoPE position of the next token (equal on all axes).
      budget: most tokens to sample, at most `max_new_tokens`.
    """

    seed: int
    next_position: int
    budget: int


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A turn's tokens (`[n]` int32), log-probs (`[n]` float32) and why it stopped."""

    tokens: np.ndarray
    logprobs: np.ndarray
    stop: str


class Sampler:
    """Samples turns for a fixed number of slots.

    Args:
      graphdef: structure of the policy; parameters are given at each call.
      model_config: sizes of the policy.
      config: sizes of the sampler.
      stop_table: automaton that ends a turn at its action's closing tag.
      end_ids: token ids that end a turn by themselves.
      base_seed: seed that is combined with each episode's.
      mesh: over which the slots are spread; None leaves them on the default
        device.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[Qwen2_5_VL],
        model_config: ModelConfig,
        config: SamplerConfig,
        stop_table: StopTable,
        end_ids: Sequence[int],
        base_seed: int = 0,
        mesh: Mesh | None = None,
    ):
        self.config = config
        self._transitions = jnp.asarray(stop_table.transitions)
        self._accepting = jnp.asarray(stop_table.accepting)
        self._end_ids = jnp.asarray(list(end_ids), jnp.int32)
        self._key = jax.random.key(base_seed)
        init = functools.partial(init_slots, model_config, config)
        shardings = None if mesh is None else jax.tree.map(
            lambda x: x.sharding, abstract_slots(model_config, config, mesh))
        self._state = jax.jit(init, out_shardings=shardings)()
        self._prefill, self._decode = _make_functions(
            graphdef, stop_table.initial, config, shardings)
        self._lengths = np.zeros(config.slots, np.int64)
        self.tokens_decoded = 0
        self.tokens_prefilled = 0

    def reset(self) -> None:
        """Empties every slot."""
        zeros = jnp.zeros_like(self._state.lengths)
        self._state = dataclasses.replace(self._state, lengths=zeros)
        self._lengths[:] = 0

    def warm_up(self, params: Params, features: jax.Array, sampling: SamplingConfig) -> None:
        """Compiles prefill and decode for all lengths, by running them on empty slots.

        Without it the first episode of a rare length, however late it comes, would
        wait for the compiler.

        Args:
          params: the policy's parameters.
          features: `[F, D]` buffer of image features.
          sampling: how tokens will be drawn.
        """
        self.reset()
        slots = self.config.slots
        for width, attend in self.config.prefill_shapes():
            self._run_prefill(params, _no_chunks(slots, width), features, attend)
        for attend in sorted({*self.config.attend_lengths, self.config.max_length}):
            zeros = np.zeros(slots, np.int32)
            self._run_decode(params, zeros, zeros, zeros.astype(np.uint32), sampling, attend)

    def prefill(self, params: Params, chunks: Mapping[int, Chunk], features: jax.Array) -> None:
        """Appends new tokens to slots and computes their next-token logits.

        Args:
          params: the policy's parameters.
          chunks: new tokens by slot; the caller keeps them within `max_length`.
          features: `[F, D]` buffer of image features.
        """
        longest = max((len(c.tokens) for c in chunks.values()), default=0)
        largest = self.config.prefill_lengths[-1]
        for start in range(0, longest, largest):
            part = {row: _cut(c, start, start + largest) for row, c in chunks.items()}
            self._prefill_piece(params, part, features)
        self.tokens_prefilled += sum(len(c.tokens) for c in chunks.values())

    def _prefill_piece(self, params, chunks, features):
        longest = max(len(c.tokens) for c in chunks.values())
        width = next(n for n in self.config.prefill_lengths if n >= longest)
        arrays = _no_chunks(self.config.slots, width)
        tokens, positions, counts, index = arrays
        for row, chunk in chunks.items():
            n = len(chunk.tokens)
            tokens[row, :n] = chunk.tokens
            positions[:, row, :n] = chunk.position_ids
            index[row, :n] = chunk.image_index
            counts[row] = n
        self._lengths += counts
        attend = self.config.attend_length(int(self._lengths[list(chunks)].max()))
        self._run_prefill(params, arrays, features, attend)

    def _run_prefill(self, params, arrays, features, attend: int) -> None:
        tokens, positions, counts, index = arrays
        self._state = self._prefill(
            params, self._state, tokens, positions, counts, features, index, attend
        )

    def decode(
        self, params: Params, requests: Mapping[int, DecodeRequest], sampling: SamplingConfig
    ) -> dict[int, Sampled]:
        """Samples one turn for each requested slot.

        Args:
          params: the policy's parameters.
          requests: what to sample, by slot.
          sampling: how to draw; one compilation for each value.

        Returns:
          The sampled turn of each slot; its tokens are in the cache already.
        """
        slots = self.config.slots
        budgets, next_positions = np.zeros(slots, np.int32), np.zeros(slots, np.int32)
        seeds = np.zeros(slots, np.uint32)
        for row, request in requests.items():
            budgets[row] = min(request.budget, self.config.max_new_tokens)
            next_positions[row] = request.next_position
            seeds[row] = request.seed & 0xFFFFFFFF
        attend = self.config.attend_length(int((self._lengths + budgets)[budgets > 0].max()))
        tokens, logprobs, counts, stops = jax.device_get(self._run_decode(
            params, budgets, next_positions, seeds, sampling, attend))
        self._lengths += counts
        self.tokens_decoded += int(counts.sum())
        return {
            row: Sampled(
                tokens[row, : counts[row]].copy(),
                logprobs[row, : counts[row]].copy(),
                STOP_REASONS[int(stops[row])],
            )
            for row in requests
        }


    def _run_decode(self, params, budgets, next_positions, seeds, sampling, attend: int):
        self._state, *sampled = self._decode(
            params,
            self._state,
            budgets,
            next_positions,
            seeds,
            self._key,
            self._transitions,
            self._accepting,
            self._end_ids,
            sampling,
            attend,
        )
        return sampled


def _cut(chunk: Chunk, start: int, stop: int) -> Chunk:
    return Chunk(
        chunk.tokens[start:stop], chunk.position_ids[:, start:stop], chunk.image_index[start:stop]
    )


def _no_chunks(slots: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns tokens `[slots, width]`, positions, counts and image rows of an empty prefill."""
    return (np.zeros((slots, width), np.int32), np.zeros((3, slots, width), np.int32),
            np.zeros(slots, np.int32), np.full((slots, width), -1, np.int32))


def _make_functions(
    graphdef: nnx.GraphDef[Qwen2_5_VL],
    initial: int,
    config: SamplerConfig,
    shardings: SlotState | None,
):
    """Builds the jitted prefill and decode; the slot state is donated to both.

    It comes back in the shardings in which it went in: others would compile the
    next call again.
    """

    def prefill(
        params, state: SlotState, tokens, positions, counts, features, image_index, attend: int
    ):
        model = merge(graphdef, params)
        hidden, cache = model.extend(
            tokens,
            positions,
            state.cache,
            state.lengths,
            counts,
            image_features=features,
            image_index=image_index,
            attend_length=attend,
        )
        last = jnp.take_along_axis(hidden, jnp.maximum(counts - 1, 0)[:, None, None], axis=1)
        logits = jnp.where(counts[:, None] > 0, model.logits(last[:, 0]), state.logits)
        return SlotState(cache, state.lengths + counts, logits)

    def decode(
        params,
        state: SlotState,
        budgets,
        next_positions,
        seeds,
        key,
        transitions,
        accepting,
        end_ids,
        sampling: SamplingConfig,
        attend: int,
    ):
        model = merge(graphdef, params)
        slots, width = config.slots, config.max_new_tokens
        row_keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(seeds)
        stops = jnp.where(budgets > 0, RUNNING, LENGTH)
        carry = (
            jnp.zeros((), jnp.int32),
            state,
            jnp.full(slots, initial, jnp.int32),
            stops,
            jnp.zeros(slots, jnp.int32),
            jnp.zeros((slots, width), jnp.int32),
            jnp.zeros((slots, width), jnp.float32),
        )

        def running(carry):
            return jnp.any(carry[3] == RUNNING)

        def step(carry):
            i, state, automaton, stops, counts, out_tokens, out_logprobs = carry
            keys = jax.vmap(jax.random.fold_in)(row_keys, state.lengths)
            tokens, logprobs = draw(state.logits, keys, sampling)
            active = stops == RUNNING
            out_tokens = out_tokens.at[:, i].set(jnp.where(active, tokens, 0))
            out_logprobs = out_logprobs.at[:, i].set(jnp.where(active, logprobs, 0.0))
            automaton = jnp.where(active, transitions[automaton, tokens], automaton)
            counts = counts + active
            ended = jnp.any(tokens[:, None] == end_ids, axis=1)
            stopped = jnp.where(
                accepting[automaton],
                ACTION,
                jnp.where(ended, ENDED, jnp.where(counts >= budgets, LENGTH, RUNNING)),
            )
            stops = jnp.where(active, stopped, stops)
            # The last token of a turn is fed too: the cache then holds all that
            # was sampled, and the next prefill starts with the observation.
            positions = jnp.broadcast_to(next_positions + i, (3, slots))[..., None]
            hidden, cache = model.extend(
                tokens[:, None],
                positions,
                state.cache,
                state.lengths,
                active.astype(jnp.int32),
                attend_length=attend,
            )
            logits = jnp.where(active[:, None], model.logits(hidden[:, 0]), state.logits)
            state = SlotState(cache, state.lengths + active, logits)
            return i + 1, state, automaton, stops, counts, out_tokens, out_logprobs

        carry = jax.lax.while_loop(running, step, carry)
        _, state, _, stops, counts, tokens, logprobs = carry
        return state, tokens, logprobs, counts, stops

    return (
        jax.jit(prefill, donate_argnums=1, static_argnames='attend', out_shardings=shardings),
        jax.jit(
            decode,
            donate_argnums=1,
            static_argnames=('sampling', 'attend'),
            out_shardings=(shardings, None, None, None, None),
        ),
    )
