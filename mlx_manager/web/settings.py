"""The settings that can be changed while the server runs. The page reads and writes them through the API."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from mlx_manager.web.shell import page

router = APIRouter(include_in_schema=False)


@router.get("/settings")
async def show_settings(request: Request) -> Response:
    """Show the settings."""
    return page(request, "settings.html", {})
