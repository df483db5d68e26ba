"""The limit of an answer's thoughts: what the engine is told of it, and where it was met."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mlx_manager.chat.request import ChatRequest, Conversation
from mlx_manager.errors import UnsupportedParameter
from mlx_manager.mlx_server.engine.messages import ThoughtBudget
from mlx_manager.mlx_server.generation.model_text import ModelText


def thought_budget(request: ChatRequest, text: ModelText, opening: str) -> ThoughtBudget | None:
    """Return the limit of the thoughts; None where none is asked for, or the model has no marks for any.

    `opening` is what the answer begins with already. Raises UnsupportedParameter where they end with several tokens.
    """
    tokens, marks = request.sampling.thinking_tokens, text.family.reasoning
    if tokens is None or marks is None or not isinstance(request.input, Conversation):
        return None
    backend = text.tokenizer.backend_tokenizer
    begin, end = (backend.encode(mark, add_special_tokens=False).ids for mark in marks)
    if len(end) != 1:
        raise UnsupportedParameter(
            f"The thoughts of {text.model_id} end with a mark of several tokens, so they can't be limited. "
            "Leave 'thinking_token_budget' (Anthropic's 'thinking.budget_tokens') out, or switch its reasoning off.",
            param="thinking_token_budget",
        )
    return ThoughtBudget(tokens, begin, end[0], opening == marks[0])


class ThoughtCounter:
    """Counts an answer's thoughts as the engine does, and says by `cut` when they end with their budget."""

    def __init__(self, budget: ThoughtBudget, cut: Callable[[], None]) -> None:
        self._budget = budget
        self._cut = cut
        self._is_open = budget.is_open
        self._used = 0
        self._latest = deque[int](maxlen=len(budget.begin_token_ids))

    def take(self, token_id: int) -> None:
        """Take the next token of the answer."""
        self._latest.append(token_id)
        if not self._is_open:
            self._is_open = list(self._latest) == self._budget.begin_token_ids
        elif token_id != self._budget.end_token_id:
            self._used += 1
        else:
            self._is_open = False
            if self._used >= self._budget.tokens:
                self._cut()
