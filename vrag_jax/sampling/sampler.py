"""A sampler with a paged KV cache that lives across turns: prefill what is new, decode.

A sequence keeps its blocks of the cache for as long as it lives; a slot of compute it
has only during a call. `prefill` runs ragged chunks of new tokens; `decode` draws
up to `decode_tokens` tokens for as many sequences as there are slots, in one loop on
the device that ends a turn where its action is closed (`actions.stopping`), so the
host is not in the loop, whatever the tokenizer. Who gets the slots is decided by
`scheduler.Scheduler`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vrag_jax.actions.stopping import StopTable
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.parameters import Params
from vrag_jax.models.families import image_spec
from vrag_jax.models.policy import Features, PolicyModel
from vrag_jax.parallel.sharding import RULES, Rules
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.inputs import decode_inputs, prefill_inputs
from vrag_jax.sampling.kv_blocks import BlockTable, CachedSequence
from vrag_jax.sampling.programs import (
    ACTION,
    ENDED,
    LENGTH,
    RUNNING,
    DecodeInputs,
    PrefillInputs,
    StopRules,
    make_programs,
)
from vrag_jax.sampling.slots import (
    KVPool,
    SamplerConfig,
    abstract_pool,
    batch_shards,
    init_pool,
)

T = TypeVar('T')

STOP_REASONS = {RUNNING: '', ACTION: 'action', ENDED: 'end_of_turn', LENGTH: 'length'}


@dataclasses.dataclass(frozen=True)
class Chunk:
    """New tokens of a sequence.

    Attributes:
      tokens: `[n]` int32.
      position_ids: `[3, n]` int32.
      image_index: `[n]` int32 rows of the feature buffer, -1 on text.
    """

    tokens: np.ndarray
    position_ids: np.ndarray
    image_index: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> 'Chunk':
        return Chunk(self.tokens[part], self.position_ids[:, part], self.image_index[part])


@dataclasses.dataclass(frozen=True)
class DecodeRequest:
    """A sequence that goes on with its turn.

    All its tokens but the last are cached, and its blocks hold `decode_tokens` more.

    Attributes:
      sequence: its place in the cache.
      pending: its last token.
      position: M-RoPE position of that token (equal on all axes).
      seed: of the sequence; what is drawn depends on it, on the tokens, and on
        nothing else.
      budget: most tokens to sample.
      automaton: state that the call before left, `Sampler.initial` at a turn's start.
      history: `[n]` int32 all its tokens; needed only with `draft_tokens`.
    """

    sequence: CachedSequence
    pending: int
    position: int
    seed: int
    budget: int
    automaton: int
    history: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What a sequence has got in a call.

    Attributes:
      tokens: `[n]` int32.
      logprobs: `[n]` float32.
      automaton: state after them.
      stop: why the turn is over, a value of `STOP_REASONS`; '' where it is not.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    automaton: int
    stop: str


class Sampler:
    """Prefills and draws tokens of sequences whose keys and values are cached.

    Args:
      graphdef: structure of the policy; parameters are given at each call.
      model_config: sizes of the policy.
      config: sizes of the sampler.
      stop_table: automaton that ends a turn at its action's closing tag, where `config.stop_at`
        says so.
      end_ids: token ids that end a turn by themselves.
      base_seed: seed that is combined with each sequence's.
      mesh: over which slots and cache are spread; None leaves them on the default
        device.
      rules: mesh axes of each logical axis.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef[PolicyModel],
        model_config: ModelConfig,
        config: SamplerConfig,
        stop_table: StopTable,
        end_ids: Sequence[int],
        base_seed: int = 0,
        mesh: Mesh | None = None,
        rules: Rules = RULES,
    ):
        self.config = config
        self.shards = batch_shards(mesh, rules)
        self.initial = stop_table.initial
        self._rules = StopRules(
            jnp.asarray(stop_table.transitions),
            jnp.asarray(stop_table.accepting & (config.stop_at == 'action')),
            jnp.asarray(list(end_ids), jnp.int32), stop_table.initial)
        self._key = jax.random.key(base_seed)
        # In place of a buffer of image features, where there are no images.
        self.no_features: Features = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            image_spec(model_config).features(1, jnp.float32))
        init = functools.partial(init_pool, model_config, config, self.shards)
        shardings = None if mesh is None else jax.tree.map(
            lambda x: x.sharding, abstract_pool(model_config, config, mesh, rules))
        self._make_pool = jax.jit(init, out_shardings=shardings)
        self._held: KVPool | None = None
        self._programs = make_programs(
            graphdef, model_config, config, mesh, shardings, rules)
        self.table = BlockTable(self.shards, config.pool_blocks(self.shards), config.block_size)
        self.tokens_decoded = 0
        self.tokens_prefilled = 0
        self.passes = 0

    @property
    def slots_per_shard(self) -> int:
        """Slots of each part of the cache."""
        return -(-self.config.slots // self.shards)

    def reset(self) -> None:
        """Forgets every sequence."""
        self.table = BlockTable(self.shards, self.table.blocks, self.config.block_size)

    def release(self) -> None:
        """Forgets every sequence and gives the cache's memory back, until the next.

        A cache is of no use to another policy version, and an update wants the memory.
        """
        self._pool = None
        self.reset()

    @property
    def _pool(self) -> KVPool:
        if self._held is None:
            self._held = self._make_pool()
        return self._held

    @_pool.setter
    def _pool(self, pool: KVPool | None) -> None:
        self._held = pool

    def warm_up(self, params: Params, features: Features, sampling: SamplingConfig) -> None:
        """Compiles every program for all shapes, by running it on nothing.

        Without it the first sequence of a rare length, however late it comes, would
        wait for the compiler.

        Args:
          params: the policy's parameters.
          features: buffer of image features, `[F, ...]`.
          sampling: how tokens will be drawn.
        """
        attends = self.config.all_attend_blocks()
        for rows, width in self.config.prefill_shapes:
            for blocks in (0, *attends):
                self._pool = self._programs.prefill(
                    params, self._pool, self._no_chunks(rows, width, blocks), features)
        for slots in (self.config.slots, *self.config.fewer_slots):
            for blocks in attends:
                self._run_decode(params, self._no_requests(slots, blocks), sampling)
        self._copy([])

    # ---- Prefill

    def prefill(
        self, params: Params, chunks: Sequence[tuple[CachedSequence, Chunk]], features: Features
    ) -> None:
        """Caches new tokens of sequences, whose blocks must be reserved.

        Args:
          params: the policy's parameters.
          chunks: sequences, each once, and their new tokens.
          features: buffer of image features, `[F, ...]`.
        """
        self.tokens_prefilled += sum(len(chunk) for _, chunk in chunks)
        widest = max(width for _, width in self.config.prefill_shapes)
        rest = [(sequence, chunk) for sequence, chunk in chunks if len(chunk)]
        while rest:
            pieces = [(sequence, chunk[:widest]) for sequence, chunk in rest]
            for shape, batch in self._batches(pieces):
                self._prefill_batch(params, shape, batch, features)
            rest = [(sequence, chunk[widest:]) for sequence, chunk in rest
                    if len(chunk) > widest]

    def _batches(self, pieces) -> Iterator[tuple[tuple[int, int], list]]:
        """Splits pieces into calls: long with long, in as few rows as will do."""
        shapes = self.config.prefill_shapes
        widths = sorted({width for _, width in shapes})
        # With equal widths those with as much cached are together: they then read no
        # more of the cache than they have.
        ordered = sorted(pieces, key=lambda piece: (len(piece[1]), piece[0].length))
        for lower, width in zip((0, *widths), widths, strict=False):
            rows = sorted(rows for rows, w in shapes if w == width)
            left = [p for p in ordered if lower < len(p[1]) <= width]
            while left:
                # The largest call that is filled, else the smallest.
                most = max(np.bincount([p[0].shard for p in left])) * self.shards
                size = max((r for r in rows if r <= most), default=rows[0])
                batch, left = self._fill(left, size)
                yield (size, width), batch

    def _fill(self, pieces: list, rows: int) -> tuple[list, list]:
        """Splits pieces into those that a call of so many rows takes, and the rest."""
        room = [-(-rows // self.shards)] * self.shards
        taken: list = []
        left: list = []
        for piece in pieces:
            shard = piece[0].shard
            (taken if room[shard] else left).append(piece)
            room[shard] = max(0, room[shard] - 1)
        return taken, left

    def _prefill_batch(self, params, shape, batch, features) -> None:
        blocks = self.config.attend_blocks(max(sequence.length for sequence, _ in batch))
        new = self._no_chunks(shape[0], shape[1], blocks)
        for row, (sequence, chunk) in self._rows(batch, lambda piece: piece[0], len(new.lengths)):
            n = len(chunk)
            self._fill_table(new, row, sequence, blocks)
            new.tokens[row, :n] = chunk.tokens
            new.position_ids[:, row, :n] = chunk.position_ids
            new.image_index[row, :n] = chunk.image_index
            new.places[row, :n] = self.table.places(sequence, n)
            sequence.length += n
        self._pool = self._programs.prefill(params, self._pool, new, features)

    def fork(
        self, sequences: Sequence[CachedSequence], counts: Sequence[int], lengths: Sequence[int]
    ) -> list[list[CachedSequence] | None]:
        """Copies the beginnings of sequences.

        Args:
          sequences: what to copy.
          counts: how many copies of each.
          lengths: tokens of each that its copies begin with.

        Returns:
          The copies of each, which share the blocks that these tokens fill; None where
          too little is free for all of them.
        """
        made: list[list[CachedSequence] | None] = []
        pairs = []
        for sequence, count, length in zip(sequences, counts, lengths, strict=True):
            copies = self.table.fork(sequence, count, length)
            made.append(copies)
            pairs += [(sequence, copy) for copy in copies or ()]
        if pairs:
            self._copy(pairs)
        return made

    def _copy(self, pairs: Sequence[tuple[CachedSequence, CachedSequence]]) -> None:
        """Copies the block that each second sequence fills in part from the first's."""
        width = self.config.slots
        for start in range(0, max(1, len(pairs)), width):
            source = np.zeros((self.shards, width), np.int32)
            destination = np.full((self.shards, width), self.table.blocks, np.int32)
            for n, (original, copy) in enumerate(pairs[start : start + width]):
                whole, rest = divmod(copy.length, self.config.block_size)
                if rest:
                    source[original.shard, n] = original.blocks[whole]
                    destination[original.shard, n] = copy.blocks[whole]
            self._pool = self._programs.copy(self._pool, source, destination)

    # ---- Drawing tokens

    def decode(
        self, params: Params, requests: Sequence[DecodeRequest], sampling: SamplingConfig,
        stop_after: int | None = None,
    ) -> list[Sampled]:
        """Draws tokens until turns end, or there are `decode_tokens` of each.

        Args:
          params: the policy's parameters.
          requests: at most `slots_per_shard` of each shard.
          sampling: how to draw; one compilation for each value.
          stop_after: return as soon as so many turns have ended; None waits for all.

        Returns:
          What each has got; its tokens but the last are cached.
        """
        count = max(np.bincount([r.sequence.shard for r in requests])) * self.shards
        slots = min((n for n in self.config.fewer_slots if n >= count), default=self.config.slots)
        longest = max(request.sequence.length for request in requests)
        blocks = self.config.attend_blocks(max(1, longest))
        inputs = self._no_requests(slots, blocks)
        inputs.stop_after[...] = len(requests) if stop_after is None else stop_after
        placed = list(self._rows(requests, lambda request: request.sequence, len(inputs.lengths)))
        for row, request in placed:
            self._fill_table(inputs, row, request.sequence, blocks)
            inputs.places[row] = self.table.places(request.sequence, inputs.places.shape[1])
            inputs.pending[row] = request.pending
            inputs.positions[row] = request.position
            inputs.automaton[row] = request.automaton
            inputs.budgets[row] = request.budget
            inputs.seeds[row] = request.seed & 0xFFFFFFFF
            if inputs.history is not None:
                assert request.history is not None
                inputs.history[row, : len(request.history)] = request.history
        decoded = jax.device_get(self._run_decode(params, inputs, sampling))
        self.passes += int(decoded.passes)
        by_request: dict[int, Sampled] = {}
        for row, request in placed:
            chosen = decoded.sampled[row]
            sampled = Sampled(
                decoded.tokens[row][chosen], decoded.logprobs[row][chosen],
                int(decoded.automaton[row]), STOP_REASONS[int(decoded.stops[row])])
            request.sequence.length += len(sampled.tokens)
            self.tokens_decoded += len(sampled.tokens)
            by_request[id(request)] = sampled
        return [by_request[id(request)] for request in requests]

    def _run_decode(self, params, inputs: DecodeInputs, sampling: SamplingConfig):
        self._pool, decoded = self._programs.decode(
            params, self._pool, inputs, self._key, self._rules, sampling)
        return decoded

    # ---- Inputs of the programs

    def _rows(
        self, items: Sequence[T], sequence_of: Callable[[T], CachedSequence], rows: int
    ) -> Iterator[tuple[int, T]]:
        """Gives each item a row of its shard's share of `rows`."""
        each = rows // self.shards
        used = [0] * self.shards
        for item in items:
            shard = sequence_of(item).shard
            assert used[shard] < each, 'more sequences of a shard than it has rows'
            yield shard * each + used[shard], item
            used[shard] += 1

    def _fill_table(self, inputs, row: int, sequence: CachedSequence, blocks: int) -> None:
        inputs.lengths[row] = sequence.length
        table = inputs.table.reshape(len(inputs.lengths), blocks)
        own = sequence.blocks[: min(blocks, self.table.needed(sequence.length))]
        table[row, : len(own)] = own

    def _no_chunks(self, rows: int, width: int, blocks: int) -> PrefillInputs:
        return prefill_inputs(self.shards, rows, width, blocks, self._past_end)

    def _no_requests(self, slots: int, blocks: int) -> DecodeInputs:
        return decode_inputs(self.config, self.shards, slots, blocks, self._past_end)

    @property
    def _past_end(self) -> int:
        return self.table.blocks * self.config.block_size
