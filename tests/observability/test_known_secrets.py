"""Keys that the process was given are blanked by what they are, not by what they look like."""

from __future__ import annotations

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


def test_words_are_no_keys() -> None:
    with kept_out(["", "chat"]):
        assert clean_text("chat") == "chat"


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
