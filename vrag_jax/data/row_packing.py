"""First-fit packing of sequences of different lengths into rows of one length."""

from collections.abc import Sequence


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Assigns sequences to rows, longest first, each to the first row that still has room.

    (First-fit decreasing: at most 11/9 of the fewest rows, and two more thirds of one.)

    Args:
      lengths: tokens of each sequence.
      row_length: tokens a row can hold.

    Returns:
      For each row the indices of its sequences, ascending; every sequence is in
      exactly one row.

    Raises:
      ValueError: if a sequence is empty or longer than a row.
    """
    for index, length in enumerate(lengths):
        if not 0 < length <= row_length:
            raise ValueError(f'sequence {index} has {length} tokens; a row holds 1 to {row_length}')
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        for row, free in enumerate(room):
            if length <= free:
                rows[row].append(index)
                room[row] -= length
                break
        else:
            rows.append([index])
            room.append(row_length - length)
    return [sorted(row) for row in rows]
