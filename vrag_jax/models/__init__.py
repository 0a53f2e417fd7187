"""Qwen2.5-VL in Flax NNX: vision tower, decoder, M-RoPE, HF weights in and out."""
