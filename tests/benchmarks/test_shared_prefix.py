import pytest

from benchmarks.shared_documents import DOCUMENT_TOKENS, DOCUMENTS, Asking, Question, Reply, excerpts, questions, shares
from benchmarks.shared_prefix import HIGH, LOW, PLACEMENTS, hold_against, verdict
from services.text_worker.config import default_model

WHAT = Question(0, "What?")


def reply(question: Question, tokens: tuple[int, ...], worker: str = "one") -> Reply:
    return Reply(question, 0.0, 0.1, 0.2, tokens, 0, worker)


def test_documents_are_long_different_and_asked_about_in_turn() -> None:
    asking = Asking(default_model())
    texts = excerpts(asking.tokenizer)
    assert len(set(texts)) == DOCUMENTS
    assert len({text[:256] for text in texts}) == DOCUMENTS
    lengths = [len(asking.tokenizer.encode(text)) for text in texts]
    assert min(lengths) > 0.9 * DOCUMENT_TOKENS
    asked = questions(texts, 100, seed=3)
    assert asked == questions(texts, 100, seed=3)
    assert len({question.prompt for question in asked + questions(texts, 100, seed=4)}) == 200
    assert all(question.prompt.startswith(texts[question.document]) for question in asked)
    assert len({question.document for question in asked}) > DOCUMENTS // 2
    assert max(len(asking.tokenizer.encode(question.prompt)) for question in asked) + 24 <= 512


def test_no_prompt_has_two_answers() -> None:
    said: dict[str, tuple[int, ...]] = {}
    hold_against(said, [reply(WHAT, (1, 2)), reply(Question(0, "Why?"), (3,))])
    hold_against(said, [reply(WHAT, (1, 2))])
    with pytest.raises(SystemExit, match="two answers"):
        hold_against(said, [reply(WHAT, (1, 3))])


def test_placements_are_held_against_round_robin() -> None:
    first_ms = {"headway": 5.0, "round-robin": 10.0, "prefix-hash": 6.0, "least-queue": 12.0}
    rows = [
        {
            "placement": name,
            "at_once": at_once,
            "first_token_mean_ms": ms,
            "first_token_p50_ms": 10.0,
            "requests_per_s": 100 / ms,
        }
        for name, ms in first_ms.items()
        for at_once in (*LOW, HIGH)
    ]
    found = verdict(rows)
    assert list(found) == list(PLACEMENTS)
    assert found["headway"]["lower"]["first_token_mean_ms"] == dict.fromkeys(LOW, 0.5)
    assert found["headway"]["lower"]["first_token_p50_ms"] == dict.fromkeys(LOW, 0.0)
    assert found["headway"]["throughput_at_32"] == pytest.approx(2.0)
    assert found["least-queue"]["lower"]["first_token_mean_ms"][1] == pytest.approx(-0.2)


def test_shares_are_by_worker() -> None:
    assert shares([reply(WHAT, (1,), worker) for worker in ("a", "b", "b", "b")]) == [0.75, 0.25]
