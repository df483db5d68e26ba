"""The engine of an encoder: what it reports of each request, however that ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlx_manager.mlx_server.engine.blas_threads import BlasThreads
from mlx_manager.mlx_server.engine.embedding_engine import EmbeddingEngine
from mlx_manager.mlx_server.engine.embedding_model import EmbeddingModel, load_embedding_model
from mlx_manager.mlx_server.engine.embedding_scheduler import EmbeddingScheduler
from mlx_manager.mlx_server.engine.messages import Cancel, Embed, Pass
from mlx_manager.mlx_server.engine.scheduler import Limits
from tests.support.encoders import Kind, expected, make_encoder

KIND = Kind()
# Passes of 64 tokens, so that requests take several.
LIMITS = Limits(max_batch=4, prefill_chunk_tokens=64, idle_prefill_chunk_tokens=64)
# No token id: MLX raises when it is given to the model. The API process never sends it.
POISON = [2, 2**63, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("models") / "bert", KIND)


@pytest.fixture(scope="module")
def model(folder: Path) -> EmbeddingModel:
    return load_embedding_model(folder)


@pytest.fixture
def engine(model: EmbeddingModel) -> EmbeddingEngine:
    return EmbeddingEngine(model, EmbeddingScheduler(LIMITS), BlasThreads(1))


def steps(engine: EmbeddingEngine) -> list[Pass]:
    made = []
    while engine.has_work:
        made.append(engine.step())
    return made


def inputs(count: int, length: int) -> list[list[int]]:
    return [[2, *range(5 + index, 3 + index + length), 3] for index in range(count)]


def test_vectors_come_with_the_places_of_their_inputs(
    engine: EmbeddingEngine, folder: Path
) -> None:
    wanted = {1: inputs(7, 30), 2: [[2, 3], *inputs(3, 20)]}
    for sequence_id, token_ids in wanted.items():
        engine.handle(Embed(sequence_id, token_ids))

    reports = steps(engine)

    seen = []
    for piece in (vectors for report in reports for vectors in report.vectors):
        made = np.frombuffer(piece.numbers, "<f4").reshape(len(piece.positions), -1)
        for position, vector in zip(piece.positions, made, strict=True):
            want = expected(folder, wanted[piece.sequence_id][position], KIND)
            assert np.abs(vector - want).max() < 1e-5
            seen.append((piece.sequence_id, position))
    assert sorted(seen) == [(1, n) for n in range(7)] + [(2, n) for n in range(4)]
    ends = {ended.sequence_id: ended for report in reports for ended in report.ended}
    assert {key: ended.reason for key, ended in ends.items()} == {1: "stop", 2: "stop"}
    stamps = ends[1].stamps
    assert stamps.admitted_ns is not None
    assert stamps.finished_ns is not None
    assert stamps.received_ns <= stamps.admitted_ns < stamps.finished_ns
    assert stamps.batches > 1
    assert stamps.batch_width_max <= stamps.batch_width_sum


def test_one_that_was_there_before_a_pass_without_it_has_waited(engine: EmbeddingEngine) -> None:
    engine.handle(Embed(1, inputs(2, 60)))
    engine.handle(Embed(2, inputs(1, 60)))
    first, second, third = steps(engine)
    assert (first.admitted, first.waited) == ([1], [])
    assert (second.admitted, second.waited) == ([2], [2])
    assert (third.admitted, third.waited) == ([], [])


def test_a_cancelled_request_is_not_computed_any_further(engine: EmbeddingEngine) -> None:
    engine.handle(Embed(1, inputs(10, 60)))
    engine.handle(Embed(2, inputs(1, 60)))
    engine.step()
    engine.handle(Cancel(1))
    engine.handle(Cancel(99))

    reports = steps(engine)

    assert [piece.sequence_id for report in reports for piece in report.vectors] == [2]
    ends = [(end.sequence_id, end.reason) for report in reports for end in report.ended]
    assert sorted(ends) == [(1, "cancelled"), (2, "stop")]


def test_a_batch_that_cannot_be_computed_fails_its_requests_and_no_other(
    engine: EmbeddingEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    # More tokens than there are positions, in shapes that don't fit; the API process never sends them.
    engine.handle(Embed(1, [[]]))
    engine.handle(Embed(2, inputs(1, 64)))

    reports = steps(engine)

    ends = {end.sequence_id: end for report in reports for end in report.ended}
    assert (ends[1].reason, ends[2].reason) == ("failed", "stop")
    assert ends[1].detail
    assert "Traceback" in capsys.readouterr().err


def test_of_those_in_a_pass_that_fails_only_the_one_that_breaks_it_does(
    engine: EmbeddingEngine, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {1: inputs(2, 4), 3: inputs(1, 6)}
    engine.handle(Embed(1, wanted[1]))
    engine.handle(Embed(2, [[2, 7, 3], POISON]))
    engine.handle(Embed(3, wanted[3]))

    reports = steps(engine)

    ends = {end.sequence_id: end for report in reports for end in report.ended}
    assert {key: end.reason for key, end in ends.items()} == {1: "stop", 2: "failed", 3: "stop"}
    assert reports[0].admitted == [1, 2, 3], "all of them were in one pass"
    for sequence_id, token_ids in wanted.items():
        [made] = [one for one in reports[0].vectors if one.sequence_id == sequence_id]
        rows = np.frombuffer(made.numbers, "<f4").reshape(len(token_ids), -1)
        for position, row in zip(made.positions, rows, strict=True):
            assert np.abs(row - expected(folder, token_ids[position], KIND)).max() < 1e-5
    stamps = ends[1].stamps
    assert (stamps.batches, stamps.batch_width_max) == (1, 2), "the pass that failed made nothing"
    assert sum(group.count for group in engine.vitals().steps) == 4
    assert "Traceback" in capsys.readouterr().err


def test_vitals_count_requests_that_wait_and_that_are_begun(engine: EmbeddingEngine) -> None:
    for sequence_id in (1, 2, 3):
        engine.handle(Embed(sequence_id, inputs(2, 60)))
    engine.step()
    vitals = engine.vitals()
    assert (vitals.waiting, vitals.running) == (2, 1)
    assert sum(group.count for group in vitals.steps) == 1
    steps(engine)
    assert (engine.vitals().waiting, engine.vitals().running) == (0, 0)
