"""In which groups keys and values are quantised, and what they take then: known without MLX."""

from __future__ import annotations

from collections.abc import Iterable

# The larger ones take less, the smaller ones fit more models.
GROUP_SIZES = (64, 32)


def group_size(widths: Iterable[int]) -> int | None:
    """Return the largest size of groups that heads of so many numbers can be cut into; None when there is none."""
    wanted = set(widths)
    fitting = (size for size in GROUP_SIZES if all(one > 0 and one % size == 0 for one in wanted))
    return next(fitting, None)


def quantised_bytes(numbers: int, head_width: int, bits: int, element_bytes: int) -> int:
    """Return what so many numbers of `element_bytes` take in `bits` each, with the scale and the bias of each group.

    Heads that can't be cut into groups stay whole.
    """
    size = group_size([head_width])
    if size is None:
        return numbers * element_bytes
    return numbers * bits // 8 + numbers // size * 2 * element_bytes
