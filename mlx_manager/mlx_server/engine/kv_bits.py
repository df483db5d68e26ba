"""Have a model keep its keys and values quantised, which its settings can ask for."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlx_manager.mlx_server.engine.kv_groups import GROUP_SIZES, group_size
from mlx_manager.mlx_server.engine.quantised_kv import Quantisation, QuantisedCache
from mlx_manager.mlx_server.engine.row_state import is_plain
from mlx_manager.mlx_server.engine.slotted_cache import Layout, slots_of

# Any token will do: it is what layers keep of it that counts.
PROBE_TOKEN_ID = 0


class KvBitsImpossible(ValueError):
    """A model's keys and values can't be quantised."""


def quantise_kv(model: Any, bits: int) -> None:
    """Have all caches that are made for `model` from now on keep `bits` of each number. Runs two tokens through it.

    Raises KvBitsImpossible when its layers keep something else, or compute with it in a way of their own.
    """
    caches = make_prompt_cache(model)
    if not all(is_plain(cache) for cache in caches):
        kinds = ", ".join(sorted({type(cache).__name__ for cache in caches if not is_plain(cache)}))
        raise KvBitsImpossible(
            f"kv_bits is {bits}, and not all layers of this model keep plain keys and values ({kinds}). "
            "Leave kv_bits out for it; a smaller context_tokens saves memory."
        )
    mx.eval(model(mx.array([[PROBE_TOKEN_ID]]), cache=caches))
    kept = [one for cache in caches for one in (cache.keys, cache.values) if one is not None]
    widths = {array.shape[-1] for array in kept}
    size = group_size(widths)
    if size is None:
        told = " and ".join(map(str, sorted(widths)))
        raise KvBitsImpossible(
            f"kv_bits is {bits}, and this model's heads have keys and values of {told} numbers: so many are no "
            f"multiple of {GROUP_SIZES[-1]}, which are quantised together. Leave kv_bits out for it; a smaller "
            "context_tokens saves memory."
        )
    quantisation, layers = Quantisation(bits, size, kept[0].dtype), len(caches)
    _decode_one(model, quantisation, layers)
    model.make_cache = lambda: [QuantisedCache(quantisation) for _ in range(layers)]


def _decode_one(model: Any, quantisation: Quantisation, layers: int) -> None:
    """See that its attention takes keys and values as they are in slots."""
    layout = Layout()
    layout.move([1])
    layout.take(0)
    slots = [slots_of(layout, quantisation) for _ in range(layers)]
    try:
        mx.eval(model(mx.array([[PROBE_TOKEN_ID]]), cache=slots))
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise KvBitsImpossible(
            f"kv_bits is {quantisation.bits}, and this model's attention can't compute with quantised keys and values "
            f"({error}). Leave kv_bits out for it; a smaller context_tokens saves memory."
        ) from error
