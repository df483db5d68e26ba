"""Keys that the process was given are blanked by what they are, not by what they look like."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_manager.mlx_server.config import Settings
from mlx_manager.observability.known_secrets import (
    REDACTED,
    holds_secret,
    kept_out,
    secrets_in,
    without_secrets,
)
from mlx_manager.observability.redaction import (
    CUT,
    TEXT_LENGTH,
    clean_any,
    clean_attributes,
    clean_text,
)

KEY = "Winter.Garden_47"
ODD = 'p/w+d:41%20&"ö'


@pytest.mark.parametrize(
    "written",
    [
        ODD,
        "p/w%2Bd%3A41%2520%26%22%C3%B6",
        "p%2Fw%2Bd%3A41%2520%26%22%C3%B6",
        'p/w+d:41%20&\\"\\u00f6',
        'p/w+d:41%20&\\"ö',
        'p/w+d:41%20&"Ã¶',
    ],
)
def test_a_key_is_blanked_in_each_spelling(written: str) -> None:
    with kept_out([ODD]):
        assert clean_text(f"before{written}behind") == f"before{REDACTED}behind"


def test_a_key_is_looked_for_as_long_as_the_block_lasts() -> None:
    with kept_out([KEY]), kept_out([KEY, ODD]):
        pass
    assert clean_text(KEY) == KEY
    assert not holds_secret(KEY)


def test_names_and_nested_values_are_searched_too() -> None:
    assert clean_attributes({f"of.{KEY}": 1}) == {f"of.{KEY}": 1}
    with kept_out([KEY]):
        assert clean_attributes({f"of.{KEY}": 1, "a": ("b", KEY)}) == {"a": ("b", REDACTED)}
        assert clean_any("body", {KEY: 1, "a": [KEY, KEY.encode()]}) == {
            "a": [REDACTED, REDACTED.encode()]
        }
    assert clean_attributes({f"of.{KEY}": 1}) == {f"of.{KEY}": 1}


@pytest.mark.parametrize("shown", range(len(KEY) + 1))
def test_no_piece_of_a_key_is_left_by_a_cut(shown: int) -> None:
    before = "x" * (TEXT_LENGTH - shown)
    with kept_out([KEY]):
        text = clean_text(f"{before}{KEY} and more")
    assert text == (f"{before}{REDACTED}{CUT}" if shown else f"{before}{CUT}")


def test_no_piece_is_left_where_blanked_keys_make_room() -> None:
    with kept_out([KEY * 3]):
        assert "Winter" not in clean_text(KEY * 300, 100)


def test_the_longer_of_two_keys_is_blanked_whole() -> None:
    with kept_out([KEY, f"{KEY}-and-more"]):
        assert without_secrets(f"{KEY}-and-more {KEY}", 100) == f"{REDACTED} {REDACTED}"


@pytest.mark.parametrize("word", ["", "chat", "kitchen", "4711", "p4s"])
def test_words_numbers_and_what_is_very_short_are_no_keys(word: str) -> None:
    with kept_out([word]):
        assert clean_text(f"a {word} b") == f"a {word} b"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("p4ss", REDACTED),
        ("with p4ss, and", f"with {REDACTED}, and"),
        ("/p4ss/x_p4ss.p4ss", f"/{REDACTED}/x_{REDACTED}.{REDACTED}"),
        ("ap4ss p4ss1 p4ssé", "ap4ss p4ss1 p4ssé"),
        ("ap4ss p4ss", f"ap4ss {REDACTED}"),
        ("a p%40s1 b", f"a {REDACTED} b"),
        (r"%20p4ss%20\np4ss\n\u00e9p4ss", rf"%20{REDACTED}%20\n{REDACTED}\n\u00e9{REDACTED}"),
        (f"{'x' * (TEXT_LENGTH - 2)} p4ss", f"{'x' * (TEXT_LENGTH - 2)} {REDACTED}{CUT}"),
        (f"{'x' * (TEXT_LENGTH - 2)} p4ssword", f"{'x' * (TEXT_LENGTH - 2)} p{CUT}"),
    ],
)
def test_a_short_key_is_blanked_where_it_stands_alone(text: str, clean: str) -> None:
    with kept_out(["p4ss", "p@s1"]):
        assert clean_text(text) == clean
    assert clean_text("p4ss") == "p4ss"


def test_a_short_key_and_a_long_one_that_begins_with_it_are_told_apart() -> None:
    with kept_out(["p4ss", "p4ss-of-the-agent"]):
        assert clean_text("p4ss-of-the-agent p4ss") == f"{REDACTED} {REDACTED}"


def test_a_key_of_digits_is_blanked_where_it_is_a_number() -> None:
    with kept_out(["0047110815"]):
        kept: dict[str, Any] = {"a": 47110815, "b": [1, 47110815], "c": 1, "d": (1.5,)}
        blanked = {"a": REDACTED, "b": ("1", REDACTED)}
        assert clean_attributes(kept) == kept | blanked
        assert clean_any("body", {"a": [47110815]}) == {"a": [REDACTED]}
    assert clean_attributes({"a": 47110815}) == {"a": 47110815}


def test_what_exporters_and_clients_are_given_is_known() -> None:
    environ = {
        "LOGFIRE_TOKEN": "first-token, second-token",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-team=team%20key,Authorization=Basic dXNlcjpwYXNz",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-key=of-traces",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://user:pass%2Fword@example.org",
        "https_proxy": "http://user:of-the-proxy@example.org:3128",
        "HF_TOKEN": "of-the-hub",
        "OTEL_SERVICE_NAME": "harmless",
        "LOGFIRE_BASE_URL": "http://[broken",
    }
    assert set(secrets_in(environ)) == {
        *("first-token", "second-token", "team key", "key"),
        *("Basic dXNlcjpwYXNz", "dXNlcjpwYXNz", "of-traces"),
        *("pass%2Fword", "pass/word", "of-the-proxy", "of-the-hub"),
    }


def test_settings_know_their_secrets() -> None:
    settings = Settings(
        api_keys={"a": "of-the-laptop", "b": "of-the-agent"},
        metrics_key="of-metrics",
        admin_key="of-administration",
        otlp_key="of-spans-of-others",
        database_url="postgresql+asyncpg://user:of-the-database@example.org/audit",
    )
    assert set(settings.secrets) == {
        *("of-the-laptop", "of-the-agent", "of-metrics", "of-administration"),
        *("of-spans-of-others", "of-the-database"),
    }
    # A field that holds a secret is told by its type; one that is added has to be told of, too.
    fields = Settings.model_fields.items()
    assert {name for name, field in fields if "SecretStr" in str(field.annotation)} == {
        *("api_keys", "metrics_key", "admin_key", "otlp_key")
    }
