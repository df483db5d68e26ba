"""Keep Python's garbage collector away from what lives as long as the process."""

from __future__ import annotations

import gc

# A request leaves some hundred objects behind, nearly all of which go by themselves when nothing names them any more.
YOUNG_OBJECTS = 10_000
GROUPS = 10


def keep_all_so_far() -> None:
    """Leave what exists now out of all later collections; cheap, and may be called again when more was imported.

    Imported libraries make 200,000 objects. Looking through them takes 200 to 450 ms, in which nothing else runs, and
    came every few hundred requests. What is in a circle now and garbage later stays; a tokenizer, say, is in none.
    """
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, GROUPS, GROUPS)
