"""The errors that a user can meet: code, HTTP status, message. Imports nothing.

An error is raised where the most is known, travels unchanged, and is rendered once, at the edge, in the shape of
the API that was called. Messages say what happened and what to do next; they may quote the request, so they go to
the client and never to a span or a log (those carry `code`).
"""

from __future__ import annotations

from typing import ClassVar


class MlxManagerError(Exception):
    """Base of every drawn error."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    # The same request would fail again, whatever its client thinks of the status.
    is_final: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(MlxManagerError):
    """The request can't be understood as it stands."""

    code = "invalid_request"
    status = 400
    title = "Invalid request"


class UnsupportedParameter(InvalidRequest):
    """A parameter that would change the answer and that this version can't honour."""

    code = "unsupported_parameter"
    title = "Unsupported parameter"


class ThreadsUnsupported(UnsupportedParameter):
    """A conversation is to be kept for the next message, which Anthropic's API calls a thread; the code is its own."""

    code = "thread_unsupported_request"
    title = "Threads are not kept"


class WrongModelKind(InvalidRequest):
    """The model makes something else than was asked for; the message lists those that would do."""

    code = "wrong_model_kind"
    title = "Wrong kind of model"


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room for an answer in the model's context, or is more than an encoder takes."""

    code = "context_length_exceeded"
    title = "Prompt too long"


class MemoryExceeded(InvalidRequest):
    """Keys and values of prompt and answer would need more memory than all requests together may have."""

    code = "memory_exceeded"
    title = "Not enough memory"


class ModelNotFound(MlxManagerError):
    """No such model on this machine; the message lists those that exist."""

    code = "model_not_found"
    status = 404
    title = "Model not found"


class RequestNotFound(MlxManagerError):
    """The audit log knows no request of this id."""

    code = "request_not_found"
    status = 404
    title = "Request not found"


class ResponseNotFound(MlxManagerError):
    """No response with this id is stored, or not for the key that asks."""

    code = "response_not_found"
    status = 404
    title = "Response not found"


class ItemNotFound(MlxManagerError):
    """No item with this id is stored, or not for the key that asks."""

    code = "item_not_found"
    status = 404
    title = "Item not found"


class ModelLoadFailed(MlxManagerError):
    """The model's files are there, but the engine couldn't load them."""

    code = "model_load_failed"
    status = 503
    title = "Model could not be loaded"


class InsufficientMemory(MlxManagerError):
    """The model doesn't fit into the memory that models may take; the message says the numbers."""

    code = "insufficient_memory"
    status = 503
    title = "Not enough memory"


class ModelInUse(MlxManagerError):
    """The model has requests to answer, so it can't be unloaded."""

    code = "model_in_use"
    status = 409
    title = "Model in use"


class EngineFailed(MlxManagerError):
    """The engine process ended or stalled while it worked on this request."""

    code = "engine_failed"
    status = 503
    title = "Engine failed"


class RequestEndsEngine(MlxManagerError):
    """The engine process ended each time that it worked on this request; it isn't tried again."""

    code = "request_ends_engine"
    status = 500
    title = "Request ends the engine"
    is_final = True


class RequestBreaksBatch(MlxManagerError):
    """The engine lost its batch each time that it worked on this request; it isn't tried again."""

    code = "request_breaks_batch"
    status = 500
    title = "Request breaks the batch"
    is_final = True


class ModelUnavailable(MlxManagerError):
    """The model's engine processes ended one after another before they had done any work; a pause is made."""

    code = "model_unavailable"
    status = 503
    title = "Model unavailable"


class GenerationFailed(MlxManagerError):
    """The engine is well, but couldn't compute this one request."""

    code = "generation_failed"
    status = 500
    title = "Generation failed"


class MetricsOff(MlxManagerError):
    """The server was started without metrics for Prometheus."""

    code = "metrics_off"
    status = 404
    title = "Metrics are off"


class MetricsForbidden(MlxManagerError):
    """The reader is on another machine and has no key, or a wrong one."""

    code = "metrics_forbidden"
    status = 403
    title = "Metrics are not for everybody"


class Overloaded(MlxManagerError):
    """No room for the request now; it may be sent again after `retry_after_s`."""

    code = "overloaded"
    status = 503
    title = "Overloaded"


class ShuttingDown(MlxManagerError):
    """The server has been asked to stop and takes no new work."""

    code = "shutting_down"
    status = 503
    title = "Shutting down"


class RequestTimeout(MlxManagerError):
    """The request took longer than the limit that the administrator set."""

    code = "request_timeout"
    status = 504
    title = "Request timed out"


class RequestCancelled(MlxManagerError):
    """Somebody who may administer the server ended the request. Not to be sent again by itself, so not a 5xx."""

    code = "request_cancelled"
    status = 499
    title = "Request cancelled"


class AdminForbidden(MlxManagerError):
    """Whoever wants to administer is on another machine and has no key, or a wrong one."""

    code = "admin_forbidden"
    status = 403
    title = "Administration is not for everybody"


class InvalidQuery(InvalidRequest):
    """A query parameter that can't be understood; `param` names it."""

    code = "invalid_query"
    status = 422
    title = "Invalid query"


class TraceNotFound(MlxManagerError):
    """No trace with this id is kept."""

    code = "trace_not_found"
    status = 404
    title = "Trace not found"


class TracesUnavailable(MlxManagerError):
    """The trace store is switched off, or its file can't be used."""

    code = "traces_unavailable"
    status = 503
    title = "Traces unavailable"


class LocalOnly(MlxManagerError):
    """Somebody on another machine asked for what only this machine may see."""

    code = "local_only"
    status = 403
    title = "Only for this machine"


class WrongHost(MlxManagerError):
    """The server was called by a name that is not its own."""

    code = "wrong_host"
    status = 403
    title = "Unknown host name"


class Unauthorized(MlxManagerError):
    """The request needs a key, and has none or a wrong one."""

    code = "unauthorized"
    status = 401
    title = "Unauthorized"


class InvalidApiKey(Unauthorized):
    """The model API is called without a key, or with one that the server doesn't know."""

    code = "invalid_api_key"
    title = "Invalid API key"


class Forbidden(MlxManagerError):
    """Nobody may do this from where the request came."""

    code = "forbidden"
    status = 403
    title = "Forbidden"


class ContentTooLarge(MlxManagerError):
    """The body is larger than what is read."""

    code = "content_too_large"
    status = 413
    title = "Content too large"


class UnsupportedMediaType(MlxManagerError):
    """The body has a type or an encoding that the endpoint doesn't take."""

    code = "unsupported_media_type"
    status = 415
    title = "Unsupported media type"
