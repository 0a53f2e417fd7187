"""What policy families share: layers, attention, M-RoPE, adapters, HF weights in and out."""
