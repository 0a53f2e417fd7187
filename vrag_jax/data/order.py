"""Which items a step of training takes: drawn from the seed, the phase and the step alone."""

import functools

import numpy as np


def host_rng(seed: int, phase: str, step: int) -> np.random.Generator:
    """Returns the host's random generator of a step.

    The state of all randomness is the pair (seed, step): a run that resumes at
    a step draws what a run that was never stopped would have drawn.
    """
    return np.random.default_rng([seed, *phase.encode(), step])


def epoch_slice(count: int, size: int, step: int, seed: int, name: str) -> list[int]:
    """Returns indices of a step's items: epochs in an order of their own, one after the other."""
    epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), count)
    return np.concatenate([
        _epoch_order(count, seed, name, int(epoch))[places[epochs == epoch]]
        for epoch in np.unique(epochs)]).tolist()


@functools.lru_cache(maxsize=4)  # A step ends one epoch and begins the next, of two phases.
def _epoch_order(count: int, seed: int, name: str, epoch: int) -> np.ndarray:
    """Returns the order of an epoch, `[count]`; not to be written to."""
    return host_rng(seed, f'{name}/order', epoch).permutation(count)
