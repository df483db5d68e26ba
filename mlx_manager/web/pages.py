"""All pages, as one router."""

from __future__ import annotations

from fastapi import APIRouter

from mlx_manager.web import dashboard, overview, requests, settings, traces, usage

router = APIRouter(include_in_schema=False)
for module in (overview, dashboard, traces, requests, usage, settings):
    router.include_router(module.router)
