"""What is used of mlx-lm's `BatchGenerator`. Its interface has changed in every second release, so that is checked when
a runner is made: a drifted mlx-lm refuses to load a model instead of misbehaving.
"""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Any

USED_NAMES = (
    *("insert_segments", "next", "remove", "extract_cache", "prompt_cache_nbytes", "stream"),
)
# What a generator knows of the prompts that it reads, of which `lanes` keeps one for each lane.
LANE_PARTS = ("_prompt_batch", "_currently_processing", "_unprocessed_sequences")
# What `lanes` and `decode_batch` read or put something else in place of.
USED_PARTS = (*LANE_PARTS, "_generation_batch", "_make_batch", "_next", "_counters")
INSERT_ARGUMENTS = frozenset(
    {
        *("segments", "max_tokens", "caches", "all_tokens"),
        *("samplers", "logits_processors", "stop_sequences"),
    }
)


class BatchApiDrifted(RuntimeError):
    """The installed mlx-lm no longer has the batching interface that this file was written for."""


def check_batch_api(generator: type) -> None:
    """Raise BatchApiDrifted when mlx-lm's batching interface isn't the one known here."""
    absent = [name for name in USED_NAMES if not hasattr(generator, name)]
    insert = getattr(generator, "insert_segments", None)
    missing = INSERT_ARGUMENTS - set(inspect.signature(insert).parameters if insert else ())
    _refuse(sorted(missing) + absent)


def check_parts(generator: Any) -> None:
    """Raise BatchApiDrifted when a generator isn't made of the parts that are known here."""
    _refuse([name for name in USED_PARTS if not hasattr(generator, name)])


def _refuse(missing: list[str]) -> None:
    if missing:
        raise BatchApiDrifted(
            f"mlx-lm {version('mlx-lm')} has changed its batching interface "
            f"(missing: {', '.join(missing)}). Install the version in requirements.lock."
        )
