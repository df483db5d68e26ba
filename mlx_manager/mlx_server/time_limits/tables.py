"""Settings that were changed while the server ran."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, MappedAsDataclass, mapped_column

from mlx_manager.database import Base


class StoredSetting(MappedAsDataclass, Base, kw_only=True):
    """One setting by its name, `timeouts.chat_s`; `value` is JSON. What isn't here is as the environment has it."""

    __tablename__ = "settings"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(1024))
