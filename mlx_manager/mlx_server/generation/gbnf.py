"""Grammars in llama.cpp's GBNF, which is the EBNF of vLLM's and SGLang's clients, in the words of Lark's."""

from __future__ import annotations

from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax

from mlx_manager.errors import InvalidRequest

# What defines a rule in this dialect, and nothing in Lark's.
DEFINES = "::="
LONGEST_BYTES = 256 * 1024


def in_lark(grammar: str, param: str) -> str:
    """Return a grammar in Lark's dialect, whichever of the two it is written in.

    Raises InvalidRequest for one that is GBNF and can't be read as that.
    """
    if DEFINES not in grammar or is_lark_syntax(grammar) or len(grammar) > LONGEST_BYTES:
        return grammar
    try:
        return gbnf_to_lark(grammar)
    except RecursionError:
        reason = "it is nested too deeply"
    except Exception as error:  # noqa: BLE001 - it raises whatever it finds, and plain Exceptions too
        reason = str(error)
    raise InvalidRequest(
        f"{param!r} can't be kept to as GBNF, which its '::=' say it is: {reason}. Rules begin with 'root ::='; a "
        "grammar of Lark's begins with 'start:'.",
        param=param,
    )
