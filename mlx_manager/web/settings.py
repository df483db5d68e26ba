"""The settings that can be changed while the server runs. The page reads and writes them through the API."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from mlx_manager.web.shell import page

# By the field of `/api/settings/timeouts`: what a limit is for, and every path that keeps to it.
LIMITS = (
    (
        "chat_s",
        "Chats, messages and responses",
        ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/tokenize", "/v1/detokenize"),
    ),
    ("completions_s", "Text completions", ("/v1/completions",)),
    ("embeddings_s", "Embeddings", ("/v1/embeddings",)),
)

router = APIRouter(include_in_schema=False)


@router.get("/settings")
async def show_settings(request: Request) -> Response:
    """Show the settings."""
    return page(request, "settings.html", {"limits": LIMITS})
