"""A sequence is what the engine runs: one prompt and the tokens that follow it."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_manager.mlx_server.engine.messages import Stamps, Submit


@dataclass(slots=True)
class Sequence:
    """One request inside the engine, from `Submit` to `Ended`."""

    submit: Submit
    stamps: Stamps

    @classmethod
    def received(cls, submit: Submit, now_ns: int) -> Sequence:
        """Start the record of a sequence that has just come in."""
        return cls(submit, Stamps(received_ns=now_ns, prompt_tokens=len(submit.token_ids)))

    @property
    def id(self) -> int:
        """The id that the API process gave it."""
        return self.submit.sequence_id

    @property
    def is_decoding(self) -> bool:
        """Whether the prompt is behind it."""
        return self.stamps.first_token_ns is not None

    def add_token(self, now_ns: int, batch_width: int) -> None:
        """Record one more output token, made together with `batch_width` - 1 others."""
        stamps = self.stamps
        if stamps.last_token_ns is None:
            stamps.first_token_ns = now_ns
        else:
            stamps.longest_gap_ns = max(stamps.longest_gap_ns, now_ns - stamps.last_token_ns)
        stamps.last_token_ns = now_ns
        stamps.output_tokens += 1
        stamps.batch_width_sum += batch_width
        stamps.batch_width_max = max(stamps.batch_width_max, batch_width)
