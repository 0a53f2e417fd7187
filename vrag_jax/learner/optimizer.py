"""AdamW or Muon with warm-up, decay and gradient clipping."""

import dataclasses

import optax
from optax import contrib

from vrag_jax.models.common.parameters import Params

SCHEDULES = ('constant', 'cosine', 'linear')
ALGORITHMS = ('adamw', 'muon')
MOMENT_DTYPES = ('', 'float32', 'bfloat16')
# Root mean square of Muon's updates at a learning rate of 1, about that of AdamW's
# (Liu et al., arXiv 2502.16982): both then take the same rates and weight decay.
MUON_RMS = 0.2


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimiser.

    Attributes:
      algorithm: 'adamw', or 'muon', which orthogonalises the momentum of the layers'
        kernels and leaves everything else to Adam with Nesterov's momentum and
        without decay. From random weights it takes less than half as many steps.
      lr: peak learning rate.
      schedule: what follows the warm-up: 'constant', 'cosine' or 'linear' decay.
      warmup_steps: optimiser steps over which the rate rises from 0.
      warmup_fraction: the same as a fraction of all steps, used where
        `warmup_steps` is 0.
      end_fraction: final rate as a fraction of the peak, for the decays.
      weight_decay: decoupled decay, applied to matrices only.
      b1, b2, eps: Adam's coefficients.
      moment_dtype: dtype in which Adam's first moment, or Muon's, is kept; '' is the
        parameters'. The second keeps theirs: what it gains in a step is too small a part
        of it for bfloat16.
      clip_norm: global norm to which gradients are clipped.
    """

    algorithm: str = 'adamw'
    lr: float = 1e-6
    schedule: str = 'constant'
    warmup_steps: int = 0
    warmup_fraction: float = 0.0
    end_fraction: float = 0.0
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    moment_dtype: str = ''
    clip_norm: float = 1.0

    def __post_init__(self):
        if self.moment_dtype not in MOMENT_DTYPES:
            raise ValueError(
                f'moment_dtype must be one of {MOMENT_DTYPES}, got {self.moment_dtype!r}')
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f'algorithm must be one of {ALGORITHMS}, got {self.algorithm!r}')
        if self.schedule not in SCHEDULES:
            raise ValueError(f'schedule must be one of {SCHEDULES}, got {self.schedule!r}')
        if self.lr <= 0 or self.clip_norm <= 0:
            raise ValueError('lr and clip_norm must be positive')
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f'warmup_fraction must be in [0, 1), got {self.warmup_fraction}')
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError('warmup_steps and weight_decay must not be negative, got '
                             f'{self.warmup_steps} and {self.weight_decay}')
        if not 0 <= self.b1 < 1 or not 0 <= self.b2 < 1 or self.eps <= 0:
            raise ValueError('b1 and b2 must be in [0, 1) and eps positive, got '
                             f'{self.b1}, {self.b2} and {self.eps}')
        if not 0 <= self.end_fraction <= 1:
            raise ValueError(f'end_fraction must be in [0, 1], got {self.end_fraction}')


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the optimiser step."""
    warmup = config.warmup_steps or round(config.warmup_fraction * total_steps)
    decay_steps = max(1, total_steps - warmup)
    if config.schedule == 'constant':
        after = optax.constant_schedule(config.lr)
    elif config.schedule == 'cosine':
        after = optax.cosine_decay_schedule(config.lr, decay_steps, config.end_fraction)
    else:
        after = optax.linear_schedule(config.lr, config.lr * config.end_fraction, decay_steps)
    if not warmup:
        return after
    # The first step already learns: with a rate of 0 it would be thrown away.
    ramp = optax.linear_schedule(config.lr / warmup, config.lr, max(1, warmup - 1))
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Builds clipping and the optimiser for parameters whose matrices have a layer axis."""
    rate = learning_rate(config, total_steps)
    if config.algorithm == 'muon':
        algorithm = contrib.muon(
            rate,
            weight_decay=config.weight_decay,
            consistent_rms=MUON_RMS,
            adam_b1=config.b1,
            adam_b2=config.b2,
            eps=config.eps,
            mu_dtype=config.moment_dtype or None,
            muon_weight_dimension_numbers=muon_dimensions,
        )
    else:
        algorithm = optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mu_dtype=config.moment_dtype or None,
            mask=decay_mask,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), algorithm)


def decay_mask(params: Params) -> dict[str, bool]:
    """True for kernels, embeddings and adapters, False for norms and biases, by path."""
    decayed = ('kernel', 'embedding', 'lora_a', 'lora_b')
    return {path: path.rpartition('/')[2] in decayed for path in params}


def muon_dimensions(params: Params) -> dict[str, contrib.MuonDimensionNumbers | None]:
    """Says which parameters Muon orthogonalises, by path: kernels, one layer at a time.

    The output projection is left to Adam, as embeddings are: its columns are
    independent classes.
    """
    return {
        path: contrib.MuonDimensionNumbers(value.ndim - 2, value.ndim - 1)
        if path.endswith('kernel') and not path.startswith('lm_head') else None
        for path, value in params.items()
    }
