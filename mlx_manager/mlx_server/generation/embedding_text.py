"""The text side of a model that makes embeddings: its tokenizer, its prompts, how long an input may be.

Everything here is plain Python and slow by the event loop's measure: call it in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from mlx_manager.chat.embeddings import EmbeddingRequest
from mlx_manager.chat.tokens import DetokenizeRequest, TokenizeRequest, Tokens
from mlx_manager.errors import InvalidRequest, ModelLoadFailed, PromptTooLong
from mlx_manager.mlx_server.generation.model_text import quantization
from mlx_manager.mlx_server.pool.catalog import ModelFiles

# Positions that these encoders have and can't use: theirs begin behind the padding token's.
SHIFTED = frozenset({"roberta", "xlm-roberta", "camembert"})


@dataclass(frozen=True, slots=True)
class EmbeddingText:
    """What turns inputs into token ids for one model, and what its files say of its vectors.

    `most_tokens` are those that one input may have, special ones included; `dimensions` the numbers of its vectors.
    Reading all this took `load_s`.
    """

    model_id: str
    tokenizer: Tokenizer
    most_tokens: int
    vocabulary_size: int
    dimensions: int
    prompts: Mapping[str, str]
    default_prompt: str | None
    quantization: str | None
    load_s: float

    def encode(self, request: EmbeddingRequest) -> list[list[int]]:
        """Return the token ids of each input. Raises PromptTooLong and InvalidRequest; nothing is ever cut off."""
        if request.dimensions is not None and request.dimensions > self.dimensions:
            raise InvalidRequest(
                f"'dimensions' is {request.dimensions}; the vectors of {self.model_id} have {self.dimensions}. "
                "Ask for no more than that.",
                param="dimensions",
            )
        token_ids = self._token_ids(request)
        for index, ids in enumerate(token_ids):
            self._check(ids, index)
        return token_ids

    def tokenize(self, request: TokenizeRequest) -> Tokens:
        """Return the tokens of a text, however many. Raises InvalidRequest for a conversation."""
        if not isinstance(request.input, str):
            raise InvalidRequest(
                f"{self.model_id} makes embeddings and has no chat template. Send a 'prompt'.",
                param="messages",
            )
        text = _checked_unicode(request.input, "prompt")
        encoding = self.tokenizer.encode(text, add_special_tokens=request.adds_special_tokens)
        return Tokens(encoding.ids, encoding.tokens, self.most_tokens)

    def detokenize(self, request: DetokenizeRequest) -> str:
        """Return the text of token ids. Raises InvalidRequest for one that the model doesn't have."""
        self._check_vocabulary(request.token_ids, "tokens", "tokens")
        ids, skips = list(request.token_ids), request.skips_special_tokens
        return str(self.tokenizer.decode(ids, skip_special_tokens=skips))

    def _token_ids(self, request: EmbeddingRequest) -> list[list[int]]:
        """Texts are encoded together, in the tokenizer's own threads; token ids are taken as they are."""
        prompt = self._prompt(request.prompt_name)
        texts = {
            index: prompt + _checked_unicode(one, f"input[{index}]")
            for index, one in enumerate(request.inputs)
            if isinstance(one, str)
        }
        encodings = self.tokenizer.encode_batch_fast(list(texts.values()))
        encoded = dict(zip(texts, (encoding.ids for encoding in encodings), strict=True))
        return [
            encoded[index] if isinstance(one, str) else list(one)
            for index, one in enumerate(request.inputs)
        ]

    def _prompt(self, name: str | None) -> str:
        name = name or self.default_prompt
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise InvalidRequest(
                f"{self.model_id} has no prompt {name!r}. Those that it has: {known}.",
                param="prompt_name",
            )
        return self.prompts[name]

    def _check(self, token_ids: list[int], index: int) -> None:
        if not token_ids:
            raise InvalidRequest(
                f"input[{index}] has nothing in it that {self.model_id} reads.", param="input"
            )
        if len(token_ids) > self.most_tokens:
            raise PromptTooLong(
                f"input[{index}] has {len(token_ids)} tokens; {self.model_id} takes {self.most_tokens}. "
                f"Shorten it by {len(token_ids) - self.most_tokens} or more, or send it in parts.",
                param="input",
            )
        self._check_vocabulary(token_ids, f"input[{index}]", "input")

    def _check_vocabulary(self, token_ids: Iterable[int], place: str, param: str) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self.vocabulary_size:
                raise InvalidRequest(
                    f"Token id {token_id} in {place} is outside the vocabulary of {self.model_id}, "
                    f"which has {self.vocabulary_size} tokens.",
                    param=param,
                )


def load_embedding_text(files: ModelFiles) -> EmbeddingText:
    """Read the tokenizer and settings of a model. Raises ModelLoadFailed when they can't be read."""
    began_s = time.monotonic()
    try:
        tokenizer = Tokenizer.from_file(str(files.path / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = files.read_json("config.json")
        settings = files.read_json("config_sentence_transformers.json")
        return EmbeddingText(
            model_id=files.id,
            tokenizer=tokenizer,
            most_tokens=most_tokens(files, config),
            vocabulary_size=config["vocab_size"],
            dimensions=config["hidden_size"],
            prompts=settings.get("prompts") or {},
            default_prompt=settings.get("default_prompt_name"),
            quantization=quantization(config),
            load_s=time.monotonic() - began_s,
        )
    except Exception as error:  # the tokenizer library raises whatever a broken file makes it raise
        raise ModelLoadFailed(
            f"The tokenizer or the settings of {files.id} could not be loaded ({type(error).__name__}: {error}). "
            "Download the model again; it needs a tokenizer.json."
        ) from error


def most_tokens(files: ModelFiles, config: Mapping[str, Any]) -> int:
    """Return how long an input may be: what the makers set for vectors, else for the tokenizer, else the positions."""
    positions: int = config["max_position_embeddings"]
    if config["model_type"] in SHIFTED:
        positions -= config.get("pad_token_id", 1) + 1
    own = files.read_json("sentence_bert_config.json").get("max_seq_length")
    own = own or files.read_json("tokenizer_config.json").get("model_max_length")
    return min(int(own), positions) if own else positions


def _checked_unicode(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{place} is not valid Unicode (position {error.start}: half of a surrogate pair).",
            param=place.partition("[")[0],
        ) from error
    return text
