"""Bucket sizes to which ragged arrays are padded, so that few programs are compiled."""


def bucket(size: int, least: int = 1, steps: int = 2) -> int:
    """Returns the least size of a coarse scale that holds `size` and is at least `least`.

    Args:
      size: what has to fit.
      least: of the sizes returned.
      steps: sizes from one power of two to the next, itself a power of two; with 2, the
        scale is 2^n and 1.5 * 2^n.
    """
    size = max(size, least, 1)
    step = max(1, (1 << (size - 1).bit_length()) // 2 // steps)
    return -(-size // step) * step
