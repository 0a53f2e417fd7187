"""Minimum FLOPs of a policy's forward and backward pass."""

import math

from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.lora import LoraConfig


def decoder_flops(config: ModelConfig, rows: int, length: int) -> float:
    """Operations of the decoder and the output projection, forwards.

    Products count `2 m n k`; of attention only what the causal mask lets through.

    Args:
      config: sizes.
      rows: sequences.
      length: tokens of each.
    """
    text = config.text
    size, kv_size = text.hidden_size, text.num_key_value_heads * text.head_dim
    layer = size * (2 * size + 2 * kv_size + 3 * text.intermediate_size)
    products = 2.0 * rows * length * (text.num_hidden_layers * layer + size * text.vocab_size)
    pairs = rows * length * (length + 1) / 2
    # A product with the keys and one with the values.
    return products + 2 * 2.0 * pairs * size * text.num_hidden_layers


def adapter_flops(config: ModelConfig, lora: LoraConfig, tokens: int) -> float:
    """Operations of the adapters, forwards."""
    if not lora.rank:
        return 0.0
    text = config.text
    size, kv_size = text.hidden_size, text.num_key_value_heads * text.head_dim
    wide = text.intermediate_size
    sides = {'q_proj': (size, size), 'k_proj': (size, kv_size), 'v_proj': (size, kv_size),
             'o_proj': (size, size), 'gate_proj': (size, wide), 'up_proj': (size, wide),
             'down_proj': (wide, size)}
    numbers = sum(math.fsum(sides[name]) for name in lora.targets) * lora.rank
    return 2.0 * tokens * numbers * text.num_hidden_layers


def training_flops(config: ModelConfig, rows: int, length: int, lora: LoraConfig) -> float:
    """Operations of a loss and its gradients, nothing computed twice.

    Backwards a product is two: the gradients of both sides. Of a frozen kernel only that
    of the activations is wanted; attention has no kernels.

    Args:
      config: sizes.
      rows: sequences; images are encoded elsewhere.
      length: tokens of each.
      lora: adapters, which alone are trained, if there are any.
    """
    forward = decoder_flops(config, rows, length)
    if not lora.rank:
        return 3 * forward
    pairs = rows * length * (length + 1) / 2
    attention = 2 * 2.0 * pairs * config.text.hidden_size * config.text.num_hidden_layers
    return 2 * (forward - attention) + 3 * attention + 3 * adapter_flops(
        config, lora, rows * length)
