"""How names and numbers of traces are written on pages."""

from __future__ import annotations

import math

import pytest

from mlx_manager.web.shell import breakable, number_text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (16.145252714611992, "16.145253"),
        (0.443567817, "0.443568"),
        (12.0, "12"),
        (100, "100"),
        (1_800_000_000_000_000_000, "1800000000000000000"),
        (123456789.5, "123456789.5"),
        (0.0000123456, "1.235e-05"),
        (0.0, "0"),
        (-2.5, "-2.5"),
        (math.inf, "inf"),
    ],
)
def test_a_number_has_no_digits_that_nobody_measured(value: float, said: str) -> None:
    assert number_text(value) == said


def test_a_name_breaks_behind_its_dots_and_underscores_and_stays_text() -> None:
    assert breakable("mlx.decode.tokens_per_s") == "mlx.<wbr>decode.<wbr>tokens_<wbr>per_<wbr>s"
    assert breakable("<b>.x") == "&lt;b&gt;.<wbr>x"
