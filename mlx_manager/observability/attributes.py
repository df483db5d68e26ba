"""Names of all that is emitted: spans, attributes, metrics with their units and buckets.

OpenTelemetry's GenAI and HTTP conventions where they have a word, `mlx.` where they have none. `docs/telemetry.md`
explains each; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Spans. The chat's own span is named `{operation} {model}`, see `chat_span_name`.
SPAN_MODEL_LOAD: Final = "model.load"
SPAN_TOKENIZE: Final = "tokenize"
SPAN_QUEUE: Final = "queue"
SPAN_PREFILL: Final = "prefill"
SPAN_DECODE: Final = "decode"

# What was asked for: set only when the caller asked.
OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
OUTPUT_TYPE: Final = "gen_ai.output.type"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
REQUEST_TOP_K: Final = "gen_ai.request.top_k"
REQUEST_FREQUENCY_PENALTY: Final = "gen_ai.request.frequency_penalty"
REQUEST_PRESENCE_PENALTY: Final = "gen_ai.request.presence_penalty"
REQUEST_SEED: Final = "gen_ai.request.seed"
REQUEST_STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_MIN_P: Final = "mlx.request.min_p"

# What came back.
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

# What was said: only with content capture switched on.
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"

# Ours: how the work went.
BACKEND: Final = "mlx.backend"
REQUEST_ID: Final = "mlx.request.id"
CANCELLED: Final = "mlx.cancelled"
TIME_TO_FIRST_TOKEN_S: Final = "mlx.time_to_first_token_s"
TIME_PER_OUTPUT_TOKEN_S: Final = "mlx.time_per_output_token_s"
QUEUE_S: Final = "mlx.queue_s"
BATCH_WIDTH_MEAN: Final = "mlx.batch.width_mean"
BATCH_WIDTH_MAX: Final = "mlx.batch.width_max"
CACHE_OUTCOME: Final = "mlx.cache.outcome"
CACHE_MATCHED_TOKENS: Final = "mlx.cache.matched_tokens"
PREFILL_TOKENS: Final = "mlx.prefill.tokens"
PREFILL_CHUNKS: Final = "mlx.prefill.chunks"
DECODE_TOKENS: Final = "mlx.decode.tokens"
DECODE_TOKENS_PER_S: Final = "mlx.decode.tokens_per_s"
DECODE_LONGEST_GAP_S: Final = "mlx.decode.longest_gap_s"

# Queries.
DB_SYSTEM: Final = "db.system.name"
DB_OPERATION: Final = "db.operation.name"
DB_QUERY: Final = "db.query.text"

# Requests in and out. FastAPI and the httpx instrumentation write them; redaction reads them.
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
HTTP_STATUS: Final = "http.response.status_code"
URL_PATH: Final = "url.path"
URL_FULL: Final = "url.full"

# What Logfire and its console print for a span.
MESSAGE: Final = "logfire.msg"


@dataclass(frozen=True, slots=True)
class Metric:
    """One instrument; `buckets` are upper bounds of a histogram, empty for a counter."""

    name: str
    unit: str
    description: str
    buckets: tuple[float, ...] = ()


REQUEST_DURATION: Final = Metric(
    "gen_ai.server.request.duration",
    "s",
    "Time from taking a chat to the end of its answer.",
    tuple(0.01 * 2**n for n in range(14)),
)
TIME_TO_FIRST_TOKEN: Final = Metric(
    "gen_ai.server.time_to_first_token",
    "s",
    "Time from taking a chat to its first token.",
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
# The conventions start at 0.01; this engine is faster than they expect, so finer bounds stand in front.
TIME_PER_OUTPUT_TOKEN: Final = Metric(
    "gen_ai.server.time_per_output_token",
    "s",
    "Mean time per token after the first.",
    (
        *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075),
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    ),
)
REQUESTS_CANCELLED: Final = Metric(
    "mlx.requests.cancelled", "{request}", "Chats whose client left before the end."
)


def chat_span_name(operation: str, model: str) -> str:
    """The name of the span around one chat, as the GenAI conventions form it."""
    return f"{operation} {model}"
