"""The next rollout, beside the update: a thread samples with the weights before it."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from vrag_jax.data.records import Question
from vrag_jax.learner.learner import Learner
from vrag_jax.models.common.parameters import Params
from vrag_jax.training.rollouts import Collector, Rollout


class RolloutAhead:
    """Rolls out the next iteration in a thread, with the weights before this one's update.

    What is trained on is then sampled by a policy that is one iteration older; the loss
    corrects it by the sampler's log-probs. A context manager; when it is left by an
    error, what is under way is given up.

    Args:
      collector: does it.
      for_sampling: lays a policy out for the sampler.
    """

    def __init__(self, collector: Collector, for_sampling: Callable[[Params], Params]):
        self._collector = collector
        self._for_sampling = for_sampling
        self._pool = ThreadPoolExecutor(1, thread_name_prefix='rollout')
        self._under_way: dict[int, Future[Rollout]] = {}
        self._copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params))

    def __enter__(self) -> 'RolloutAhead':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            self._collector.cancel()
        self._pool.shutdown(cancel_futures=True)

    def start(self, step: int, learner: Learner, prompts: Sequence[Question]) -> None:
        """Begins the rollout of a step."""
        # The update donates the weights: what is not cast or moved for the sampler is copied.
        trainable = learner.state.trainable
        params = self._for_sampling(learner.state.params)
        donated = {path: value for path, value in params.items()
                   if path in trainable and value is trainable[path]}
        params = {**params, **self._copy(donated)}
        self._under_way[step] = self._pool.submit(
            self._collector.collect, params, step, prompts)

    def pop(self, step: int) -> Rollout | None:
        """Waits for the rollout of a step; None if it was not begun."""
        future = self._under_way.pop(step, None)
        return None if future is None else future.result()
