"""Qwen2-VL: sizes, vision tower, the whole model."""
