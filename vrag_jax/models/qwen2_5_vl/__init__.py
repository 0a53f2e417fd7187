"""Qwen2.5-VL: sizes, vision tower, the whole model."""
