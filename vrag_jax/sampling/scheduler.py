"""Continuous batching of sequences across turns, within a bounded KV cache."""

import dataclasses
import enum
import math
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vrag_jax.data.sequences import global_rows
from vrag_jax.models.common.images import ProcessedImage
from vrag_jax.models.common.parameters import Params
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.image_features import ImageFeatureCache
from vrag_jax.sampling.kv_blocks import CachedSequence
from vrag_jax.sampling.sampler import Chunk, DecodeRequest, Sampler


class Stream(Protocol):
    """What the scheduler needs of a sequence, e.g. `rollout.episode.Episode`."""

    processed: list[ProcessedImage]

    def __len__(self) -> int: ...

    def tail(self, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns tokens `[n]`, positions `[3, n]`, rows among its images' features `[n]`."""

    def append_text(self, ids, logprobs=None, sampled: bool = False) -> None:
        """Appends what was sampled."""


@dataclasses.dataclass(frozen=True)
class SampledTurn:
    """A turn's tokens (`[n]` int32), log-probs (`[n]` float32) and why it stopped."""

    tokens: np.ndarray
    logprobs: np.ndarray
    stop: str


class _State(enum.Enum):
    WAITING = enum.auto()  # For room in the cache.
    READY = enum.auto()    # To go on with its turn.
    AWAY = enum.auto()     # Its turn is over; `resume` or `finish` comes next.


@dataclasses.dataclass(eq=False)
class _Job:
    """A stream on its way.

    Attributes:
      order: its rank: older ones come first everywhere.
      group: number of its group.
      prompt: tokens that all streams of the group begin with.
    """

    stream: Stream
    seed: int
    order: int
    automaton: int
    group: int
    prompt: int
    state: _State = _State.WAITING
    sequence: CachedSequence | None = None
    tokens: list[np.ndarray] = dataclasses.field(default_factory=list)
    logprobs: list[np.ndarray] = dataclasses.field(default_factory=list)

    @property
    def turn_length(self) -> int:
        return sum(map(len, self.tokens))


@dataclasses.dataclass(frozen=True)
class _Admission:
    """Jobs of a group that come in; `source` holds their prompt already, if it is not None."""

    members: list[_Job]
    source: _Job | None


class Scheduler:
    """Drives streams through the sampler, as many at a time as cache and slots allow.

    Streams of a group begin with the same tokens, which are prefilled once, as long as one
    of them keeps its part of the cache. A stream whose turn is over gives up its slot at
    once, but keeps its part of the cache. When the cache is full new streams wait; when
    those that are under way outgrow it, the youngest loses its part, waits, and is
    prefilled anew. What is drawn depends on neither: only on a stream's tokens and its seed.

    Args:
      sampler: is reset first, and belongs to the scheduler until all is done.
      features: encodes images; None where streams have none.
      params: the policy's parameters.
      sampling: how tokens are drawn.
    """

    def __init__(self, sampler: Sampler, features: ImageFeatureCache | None, params: Params,
                 sampling: SamplingConfig):
        self._sampler = sampler
        self._config = sampler.config
        self._features = features
        self._params = params
        self._sampling = sampling
        self._waiting: deque[list[_Job]] = deque()
        self._jobs: dict[int, _Job] = {}
        self._count = self._groups = 0
        self._starved = False
        self.preemptions = 0
        sampler.reset()

    def add(self, streams: Sequence[Stream], seeds: Sequence[int]) -> None:
        """Queues a group of streams.

        Args:
          streams: with the same tokens so far, the last of them text.
          seeds: of each.

        Raises:
          ValueError: if a stream leaves no room for a sampled token, or the streams
            differ.
        """
        first = streams[0].tail(0)[0]
        if len(first) >= self._config.max_length:
            raise ValueError(f'a prompt of {len(first)} tokens leaves no room in '
                             f'max_length = {self._config.max_length}')
        if any(not np.array_equal(stream.tail(0)[0], first) for stream in streams[1:]):
            raise ValueError('the streams of a group must begin with the same tokens')
        group = []
        for stream, seed in zip(streams, seeds, strict=True):
            group.append(_Job(stream, seed, self._count, self._sampler.initial, self._groups,
                              len(first)))
            self._jobs[id(stream)] = group[-1]
            self._count += 1
        self._groups += 1
        self._waiting.append(group)

    def resume(self, stream: Stream) -> None:
        """Puts a stream back after its turn; what it has seen since is prefilled."""
        job = self._jobs[id(stream)]
        self._starved = False
        job.automaton, job.tokens, job.logprobs = self._sampler.initial, [], []
        if job.sequence is None:
            self._wait(job)
        else:
            job.state = _State.READY

    def finish(self, stream: Stream) -> None:
        """Takes a stream out; its part of the cache is free."""
        job = self._jobs.pop(id(stream))
        self._starved = False
        if job.sequence is not None:
            self._sampler.table.release(job.sequence)

    @property
    def idle(self) -> bool:
        """Whether nothing can be done until a stream is put back or taken out."""
        return self._starved or all(job.state is _State.AWAY for job in self._jobs.values())

    @property
    def waiting(self) -> int:
        """Streams that have no room yet."""
        return sum(map(len, self._waiting))

    @property
    def done(self) -> bool:
        """Whether every stream has been taken out."""
        return not self._jobs

    def step(self) -> list[tuple[Stream, SampledTurn]]:
        """Prefills what is new and makes one call to decode.

        Returns:
          The streams whose turns are over, each to be put back by `resume` or taken
          out by `finish`; none where turns only went on.
        """
        self._share(self._admit())
        self._prefill_new()
        chosen = self._choose()
        self._starved = not chosen
        if not chosen:
            return []
        others = len(self._jobs) > len(chosen)
        stop_after = math.ceil(self._config.refill * len(chosen)) if others else None
        sampled = self._sampler.decode(
            self._params, [self._request(job) for job in chosen], self._sampling, stop_after)
        over = []
        for job, got in zip(chosen, sampled, strict=True):
            job.stream.append_text(got.tokens, got.logprobs, sampled=True)
            job.tokens.append(got.tokens)
            job.logprobs.append(got.logprobs)
            job.automaton = got.automaton
            if got.stop:
                job.state = _State.AWAY
                turn = SampledTurn(
                    np.concatenate(job.tokens), np.concatenate(job.logprobs), got.stop)
                over.append((job.stream, turn))
        return over

    # ---- The cache

    def _resident(self, shard: int) -> list[_Job]:
        return [job for job in self._jobs.values()
                if job.sequence is not None and job.sequence.shard == shard]

    def _admit(self) -> list[_Admission]:
        """Gives waiting groups room, oldest first, until the slots are filled.

        Returns:
          Who has been admitted; the first of a group that is prefilled anew is resident.
        """
        table, block_size = self._sampler.table, self._config.block_size
        shards = range(self._sampler.shards)
        residents = [self._resident(shard) for shard in shards]
        ready = [sum(job.state is _State.READY for job in jobs) for jobs in residents]
        ahead = min(self._config.max_new_tokens, self._config.recent_tokens)
        promised = [0] * len(shards)
        admitted: list[_Admission] = []
        while self._waiting:
            group = self._waiting[0]
            # The last token of a stream is cached when the next one is drawn.
            tokens, prompt = len(group[0].stream), group[0].prompt - 1
            for shard in sorted(shards, key=lambda s: (ready[s], len(residents[s]))):
                source = next((job for job in residents[shard] if job.group == group[0].group
                               and job.sequence and job.sequence.length >= prompt > 0), None)
                # Whole blocks are shared; what follows is each member's own.
                shared = (prompt if source or len(group) > 1 else 0) // block_size
                own = table.needed(min(tokens + ahead, self._config.max_length)) - shared
                common = 0 if source else shared
                fitting = (table.free(shard) - promised[shard] - common) // max(1, own)
                if ready[shard] < self._sampler.slots_per_shard and (
                        fitting >= 1 or not residents[shard]):
                    break
            else:
                break
            # A group that does not fit as a whole comes in parts.
            members, rest = group[:max(1, fitting)], group[max(1, fitting):]
            self._waiting.popleft()
            if rest:
                self._waiting.appendleft(rest)
            if source is None:
                members[0].sequence = CachedSequence(shard)
                members[0].state = _State.READY
            admitted.append(_Admission(members, source))
            # Blocks are taken when tokens are; until then they are spoken for.
            promised[shard] += common + len(members) * own
            residents[shard] += members
            ready[shard] += len(members)
        return admitted

    def _share(self, admitted: Sequence[_Admission]) -> None:
        """Gives each group its prompt, which is prefilled once for all its members."""
        # Copies of what is there come first: prefilling others may cost a source its place.
        self._copy([(each.source, each.members) for each in admitted if each.source])
        groups = [each.members for each in admitted
                  if not each.source and len(each.members) > 1]
        self._feed([members[0] for members in groups])
        self._copy([(members[0], members[1:]) for members in groups])

    def _copy(self, groups: Sequence[tuple[_Job, Sequence[_Job]]]) -> None:
        """Gives jobs the prompt that another of their group has in the cache."""
        led = [(source.sequence, source.prompt - 1, jobs) for source, jobs in groups
               if source.sequence is not None]
        forks = dict(zip(
            (id(jobs) for _, _, jobs in led),
            self._sampler.fork([sequence for sequence, _, _ in led],
                               [len(jobs) for _, _, jobs in led],
                               [length for _, length, _ in led]), strict=True))
        for _, jobs in groups:
            copies = forks.get(id(jobs))
            if copies is None:
                # Not even the copies' first blocks are free: each prefills the prompt
                # when its turn comes.
                for job in reversed(jobs):
                    self._wait(job)
                continue
            for job, copy in zip(jobs, copies, strict=True):
                job.sequence, job.state = copy, _State.READY

    def _wait(self, job: _Job) -> None:
        job.state = _State.WAITING
        self._waiting.appendleft([job])

    def _reserve(self, job: _Job, tokens: int) -> bool:
        """Makes room for more tokens of a job, if need be by sending younger ones to wait."""
        assert job.sequence is not None
        while not self._sampler.table.reserve(job.sequence, tokens):
            youngest = max(self._resident(job.sequence.shard), key=lambda j: j.order)
            assert youngest.sequence is not None
            self._sampler.table.release(youngest.sequence)
            youngest.sequence = None
            self.preemptions += 1
            if youngest.state is _State.READY:
                self._wait(youngest)
            if youngest is job:
                return False
        return True

    # ---- Prefilling and choosing

    def _ready_jobs(self) -> list[_Job]:
        return sorted((job for job in self._jobs.values() if job.state is _State.READY),
                      key=lambda job: job.order)

    def _prefill_new(self) -> None:
        """Caches all tokens but the last of every job that goes on."""
        self._feed([job for job in self._ready_jobs()
                    if job.sequence and len(job.stream) - job.sequence.length > 1])

    def _feed(self, jobs: Sequence[_Job]) -> None:
        """Prefills jobs, as many at a time as their images fit into the feature buffer."""
        batch: list[tuple[_Job, tuple, list[ProcessedImage]]] = []
        used = 0
        for job in jobs:
            if job.sequence is None:  # An older one has taken its room.
                continue
            start = job.sequence.length
            if not self._reserve(job, len(job.stream) - 1 - start):
                continue
            tokens, positions, index = (x[..., :-1] for x in job.stream.tail(start))
            images, index = _own_images(index, job.stream.processed)
            size = sum(image.tokens for image in images)
            if self._features is not None and batch and used + size > self._features.rows:
                self._prefill(batch)
                batch, used = [], 0
            batch.append((job, (tokens, positions, index), images))
            used += size
        if batch:
            self._prefill(batch)

    def _prefill(self, batch) -> None:
        batch = [(job, part, images) for job, part, images in batch if job.sequence]
        if self._features is None:
            chunks = [(job.sequence, Chunk(*part)) for job, part, _ in batch]
            self._sampler.prefill(self._params, chunks, self._sampler.no_features)
            return
        with self._features.lock:
            rows = self._features.rows_of(
                self._params, [image for _, _, images in batch for image in images])
            chunks = [
                (job.sequence, Chunk(part[0], part[1], global_rows(part[2], images, rows)))
                for job, part, images in batch]
            self._sampler.prefill(self._params, chunks, self._features.buffer)

    def _choose(self) -> list[_Job]:
        """Fills the slots of each shard, oldest first."""
        room = [self._sampler.slots_per_shard] * self._sampler.shards
        chosen = []
        for job in self._ready_jobs():
            if job.sequence is None or not room[job.sequence.shard]:
                continue
            shard = job.sequence.shard
            if self._reserve(job, min(self._budget(job), self._config.recent_tokens)):
                room[shard] -= 1
                chosen.append(job)
        return chosen

    def _budget(self, job: _Job) -> int:
        return min(self._config.max_new_tokens - job.turn_length,
                   self._config.max_length - len(job.stream))

    def _request(self, job: _Job) -> DecodeRequest:
        assert job.sequence is not None
        tokens, positions, _ = job.stream.tail(len(job.stream) - 1)
        history = job.stream.tail(0)[0] if self._config.draft_tokens else None
        return DecodeRequest(job.sequence, int(tokens[0]), int(positions[0, 0]), job.seed,
                             self._budget(job), job.automaton, history)


def _own_images(
    index: np.ndarray, images: Sequence[ProcessedImage]
) -> tuple[list[ProcessedImage], np.ndarray]:
    """The images in a part of a stream, and the part's rows among their features alone."""
    used = index[index >= 0]
    if not len(used):
        return [], index
    ends = np.cumsum([image.tokens for image in images])
    first, last = np.searchsorted(ends, [used[0], used[-1]], side='right')
    before = ends[first] - images[first].tokens
    return list(images[first : last + 1]), np.where(index >= 0, index - before, -1)
