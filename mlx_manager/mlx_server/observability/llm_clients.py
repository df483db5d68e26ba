"""Spans of the OpenAI and Anthropic SDKs, for the chats that a cloud provider answers."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from types import ModuleType

from wrapt import register_post_import_hook

from mlx_manager.mlx_server.observability.openai_calls import trace_openai

logger = logging.getLogger(__name__)
_hooked: set[str] = set()


def instrument_llm_clients() -> None:
    """Give each call of either SDK one CLIENT span with its token counts; a missing SDK is a debug line.

    Anthropic's SDK does so by itself, with metadata only, and sends `traceparent`. OpenAI's is traced by ours as soon
    as somebody imports it: both take seconds to import, and most servers never call a cloud. Logfire's own
    instrumentation is not used: for OpenAI it always records prompts, for Anthropic 2 it fails.
    """
    for package in ("openai", "anthropic"):
        if not _is_installed(package):
            logger.debug("SDK not installed: %(sdk)s; its calls can't be traced", {"sdk": package})
    if _is_installed("openai") and "openai" not in _hooked:
        _hooked.add("openai")
        register_post_import_hook(_on_openai, "openai")


def _on_openai(openai: ModuleType) -> None:
    trace_openai(openai.OpenAI, openai.AsyncOpenAI)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False
