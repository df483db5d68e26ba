"""Names of all that is emitted: spans, attributes, metrics with their units and buckets.

OpenTelemetry's GenAI and HTTP conventions where they have a word, `mlx.` where they have none. `docs/telemetry.md`
explains each; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

# Spans. The chat's own span is named `{operation} {model}`, see `chat_span_name`.
SPAN_AUTHENTICATE: Final = "authenticate"
SPAN_ROUTE: Final = "route"
SPAN_MODEL_LOAD: Final = "model.load"
SPAN_TOKENIZE: Final = "tokenize"
SPAN_QUEUE: Final = "queue"
SPAN_PREFILL: Final = "prefill"
SPAN_DECODE: Final = "decode"
SPAN_COMPUTE: Final = "compute"
SPAN_PARSE: Final = "parse"
SPAN_RESUME: Final = "resume"

# An event of `queue`.
EVENT_GRAMMAR_READY: Final = "grammar.ready"

# Events of `decode`.
EVENT_STALL: Final = "stall"

# Events of `parse`.
EVENT_REASONING_BEGAN: Final = "reasoning.began"
EVENT_REASONING_CUT: Final = "reasoning.cut"
EVENT_REASONING_ENDED: Final = "reasoning.ended"
EVENT_TOOL_CALL_BEGAN: Final = "tool_call.began"
EVENT_TOOL_CALL_ENDED: Final = "tool_call.ended"
EVENT_TOOL_CALL_REPAIRED: Final = "tool_call.repaired"
EVENT_TOOL_CALL_MALFORMED: Final = "tool_call.malformed"
EVENT_TOOL_CALL_LEFT_OUT: Final = "tool_call.left_out"

# What was asked for: set only when the caller asked.
OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
OUTPUT_TYPE: Final = "gen_ai.output.type"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_CHOICE_COUNT: Final = "gen_ai.request.choice.count"
REQUEST_PROMPTS: Final = "mlx.request.prompts"
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
REQUEST_REPETITION_PENALTY: Final = "mlx.request.repetition_penalty"
REQUEST_LOGIT_BIASES: Final = "mlx.request.logit_biases"
REQUEST_XTC_PROBABILITY: Final = "mlx.request.xtc_probability"
REQUEST_XTC_THRESHOLD: Final = "mlx.request.xtc_threshold"
REQUEST_MIN_TOKENS: Final = "mlx.request.min_tokens"
REQUEST_IGNORE_EOS: Final = "mlx.request.ignore_eos"
REQUEST_LEFT_OUT: Final = "mlx.request.left_out"
REQUEST_TOP_LOGPROBS: Final = "mlx.request.top_logprobs"
REQUEST_PRIORITY: Final = "mlx.request.priority"
REQUEST_THINKING_TOKENS: Final = "mlx.request.thinking_tokens"
REQUEST_ADJUSTED: Final = "mlx.request.adjusted"
REQUEST_ENCODING_FORMATS: Final = "gen_ai.request.encoding_formats"
REQUEST_INPUTS: Final = "mlx.request.inputs"

# What came back.
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
DIMENSION_COUNT: Final = "gen_ai.embeddings.dimension.count"
ERROR_TYPE: Final = "error.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"

# What was said: only with content capture switched on.
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
TOOL_DEFINITIONS: Final = "gen_ai.tool.definitions"
CACHE_MISS_TEXT: Final = "mlx.cache.miss_text"
CACHE_STORED_TEXT: Final = "mlx.cache.stored_text"
CONTENT: Final = frozenset(
    {
        *(SYSTEM_INSTRUCTIONS, INPUT_MESSAGES, OUTPUT_MESSAGES, TOOL_DEFINITIONS),
        *(CACHE_MISS_TEXT, CACHE_STORED_TEXT),
    }
)

# Ours: how the work went.
BACKEND: Final = "mlx.backend"
ROUTE_MODEL: Final = "mlx.route.model"
REQUEST_ID: Final = "mlx.request.id"
KEY_ID: Final = "mlx.key.id"
CANCELLED: Final = "mlx.cancelled"
TIME_TO_FIRST_TOKEN_S: Final = "mlx.time_to_first_token_s"
TIME_PER_OUTPUT_TOKEN_S: Final = "mlx.time_per_output_token_s"
QUEUE_S: Final = "mlx.queue_s"
QUEUE_PRIORITY: Final = "mlx.queue.priority"
QUEUE_REASON: Final = "mlx.queue.reason"
QUEUE_OVERTAKEN: Final = "mlx.queue.overtaken"
QUEUE_KV_BYTES: Final = "mlx.queue.kv_bytes"
DECODE_PROPOSED_TOKENS: Final = "mlx.decode.proposed_tokens"
DECODE_ACCEPTED_TOKENS: Final = "mlx.decode.accepted_tokens"
BATCH_WIDTH_MEAN: Final = "mlx.batch.width_mean"
BATCH_WIDTH_MAX: Final = "mlx.batch.width_max"
MODEL_REVISION: Final = "mlx.model.revision"
QUANTIZATION: Final = "mlx.quantization"
LINK_REASON: Final = "mlx.link.reason"
REASON_WAITED_BEHIND: Final = "waited_behind"
REASON_SHARED_PREFIX: Final = "shared_prefix"
QUEUE_SHARED_PREFIX_S: Final = "mlx.queue.shared_prefix_s"
ENGINE_RESTARTS: Final = "mlx.engine.restarts"
RESUMES: Final = "mlx.resumes"
MODEL_SOURCE: Final = "mlx.model.source"
WEIGHTS_BYTES: Final = "mlx.model.weights_bytes"
MODEL_ADAPTER: Final = "mlx.model.adapter"
RESERVED_BYTES: Final = "mlx.model.reserved_bytes"
EVICTED: Final = "mlx.model.evicted"
LOADED_SHARE: Final = "mlx.model.load.share"
LOAD_PROCESS_S: Final = "mlx.model.load.process_s"
LOAD_WEIGHTS_S: Final = "mlx.model.load.weights_s"
LOAD_TOKENIZER_S: Final = "mlx.model.load.tokenizer_s"
GRAMMAR_WAIT_S: Final = "mlx.grammar.wait_s"
GRAMMAR_COMPILE_S: Final = "mlx.grammar.compile_s"
CACHE_OUTCOME: Final = "mlx.cache.outcome"
CACHE_MISS_REASON: Final = "mlx.cache.miss_reason"
CACHE_MATCHED_TOKENS: Final = "mlx.cache.matched_tokens"
CACHE_RESTORE_S: Final = "mlx.cache.restore_s"
CACHE_MISS_TOKEN: Final = "mlx.cache.miss_token"
CACHE_MISS_FIELD: Final = "mlx.cache.miss_field"
PREFILL_TOKENS: Final = "mlx.prefill.tokens"
PREFILL_CHUNKS: Final = "mlx.prefill.chunks"
DECODE_TOKENS: Final = "mlx.decode.tokens"
DECODE_TOKENS_PER_S: Final = "mlx.decode.tokens_per_s"
DECODE_LONGEST_GAP_S: Final = "mlx.decode.longest_gap_s"
DECODE_TOKEN_OFFSETS_MS: Final = "mlx.decode.token_offsets_ms"
DECODE_TOKEN_STRIDE: Final = "mlx.decode.token_stride"
PARSE_HELD_TO: Final = "mlx.parse.held_to"
PARSE_FAMILY: Final = "mlx.parse.family"
PARSE_TOOL_CALLS: Final = "mlx.parse.tool_calls"
PARSE_REPAIRS: Final = "mlx.parse.repairs"
PARSE_MALFORMED: Final = "mlx.parse.malformed"
PARSE_LEFT_OUT_CHARACTERS: Final = "mlx.parse.left_out_characters"
TOOL_NAME: Final = "gen_ai.tool.name"
COMPUTE_TOKENS: Final = "mlx.compute.tokens"
COMPUTE_BATCHES: Final = "mlx.compute.batches"
RESUME_AFTER_TOKEN: Final = "mlx.resume.after_token"
RESUME_ATTEMPTS: Final = "mlx.resume.attempts"
RESUME_CAUSE: Final = "mlx.resume.cause"
STALL_AFTER_TOKEN: Final = "mlx.stall.after_token"
STALL_DURATION_S: Final = "mlx.stall.duration_s"
STALL_CAUSE: Final = "mlx.stall.cause"

# What metrics are split by, besides the above.
TOKEN_TYPE: Final = "gen_ai.token.type"
KIND: Final = "kind"
OUTCOME: Final = "outcome"
SINK: Final = "sink"

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
    """One instrument; `buckets` are upper bounds, of a histogram only."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    description: str
    buckets: tuple[float, ...] = ()


_CALL_BUCKETS_S: Final = tuple(0.01 * 2**n for n in range(14))

REQUEST_DURATION: Final = Metric(
    "gen_ai.server.request.duration",
    "histogram",
    "s",
    "Time from taking a chat, or a request for embeddings, to the end of its answer.",
    _CALL_BUCKETS_S,
)
TIME_TO_FIRST_TOKEN: Final = Metric(
    "gen_ai.server.time_to_first_token",
    "histogram",
    "s",
    "Time from taking a chat to its first token.",
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
# The conventions start at 0.01; this engine is faster than they expect, so finer bounds stand in front.
TIME_PER_OUTPUT_TOKEN: Final = Metric(
    "gen_ai.server.time_per_output_token",
    "histogram",
    "s",
    "Mean time per token after the first.",
    (
        *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075),
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    ),
)
CLIENT_TOKEN_USAGE: Final = Metric(
    "gen_ai.client.token.usage",
    "histogram",
    "{token}",
    "Tokens of one call of a cloud provider.",
    tuple(4.0**n for n in range(14)),
)
CLIENT_OPERATION_DURATION: Final = Metric(
    "gen_ai.client.operation.duration",
    "histogram",
    "s",
    "Time from calling a cloud provider to the end of its answer.",
    _CALL_BUCKETS_S,
)
REQUESTS_CANCELLED: Final = Metric(
    "mlx.requests.cancelled", "counter", "{request}", "Requests whose client left before the end."
)
TOKENS: Final = Metric(
    "mlx.tokens", "counter", "{token}", "Tokens of requests; those from the cache are input, too."
)
PREFIX_CACHE_TOKENS: Final = Metric(
    "mlx.prefix_cache.tokens",
    "counter",
    "{token}",
    "Prompt tokens that were computed, and that came from the prefix cache.",
)
MODEL_LOAD_DURATION: Final = Metric(
    "mlx.model.load.duration",
    "histogram",
    "s",
    "Time from starting an engine process until it can generate.",
    (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 600.0),
)
ENGINE_STEP_DURATION: Final = Metric(
    "mlx.engine.step.duration",
    "histogram",
    "s",
    "Time of one step of the engine, for its whole batch.",
    (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)
WORKER_RESTARTS: Final = Metric(
    "mlx.worker.restarts",
    "counter",
    "{restart}",
    "Engine processes started in place of one that died or stalled.",
)

REQUESTS_RESUMED: Final = Metric(
    "mlx.requests.resumed",
    "counter",
    "{request}",
    "Requests given to an engine process again because their own had ended or lost its batch.",
)

# Read when somebody asks, not when something happens.
QUEUE_DEPTH: Final = Metric(
    "mlx.queue.depth", "gauge", "{request}", "Requests in the engine that wait for a place."
)
BATCH_WIDTH: Final = Metric(
    "mlx.batch.width", "gauge", "{request}", "Requests that the engine works on together."
)
REQUESTS_ACTIVE: Final = Metric(
    "mlx.requests.active", "gauge", "{request}", "Requests that hold the model, wherever they are."
)
MEMORY: Final = Metric("mlx.memory.bytes", "gauge", "By", "Memory that the engine holds.")
PREFIX_FILES: Final = Metric(
    "mlx.prefix_cache.files", "counter", "{file}", "What became of the prefix cache's files."
)
PREFIX_FILES_SIZE: Final = Metric(
    "mlx.prefix_cache.files.size", "gauge", "By", "Bytes of the prefix cache's files."
)
MEMORY_RESERVED: Final = Metric(
    "mlx.memory.reserved.bytes", "gauge", "By", "Memory that is set aside for the model."
)
MEMORY_BUDGET: Final = Metric(
    "mlx.memory.budget.bytes", "gauge", "By", "Memory that all models together may take."
)
TELEMETRY_DROPPED: Final = Metric(
    "mlx.telemetry.dropped", "counter", "{item}", "What a sink of telemetry had to leave out."
)
CIRCUIT_OPEN: Final = Metric(
    "mlx.circuit.open",
    "gauge",
    "{circuit}",
    "1 while a model is left alone because its engine processes ended one after another.",
)
ROW_DIFFERENCE: Final = Metric(
    "mlx.engine.row_difference",
    "gauge",
    "{request}",
    "Requests of which an engine process and the server do not both know; 0 when all is well.",
)
OBSERVED: Final = (
    QUEUE_DEPTH,
    BATCH_WIDTH,
    REQUESTS_ACTIVE,
    MEMORY,
    PREFIX_FILES,
    PREFIX_FILES_SIZE,
    MEMORY_RESERVED,
    MEMORY_BUDGET,
    CIRCUIT_OPEN,
    ROW_DIFFERENCE,
    TELEMETRY_DROPPED,
)


def chat_span_name(operation: str, model: str) -> str:
    """The name of the span around one chat, as the GenAI conventions form it."""
    return f"{operation} {model}"
