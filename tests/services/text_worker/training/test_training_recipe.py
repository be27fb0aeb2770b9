"""The recipe: prose only, a true split, resuming as if never stopped, and files that the worker loads."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.text_worker.model.cache import KvCache
from services.text_worker.model.dense import DenseModel, Span
from services.text_worker.model.families import load_architecture
from services.text_worker.tokenizer import load_tokenizer
from services.text_worker.training.corpus import (
    Document,
    is_prose,
    paragraphs_of,
    split,
    topic_documents,
    without_repeats,
)
from services.text_worker.training.export import rounded_to_shipped, write_checkpoint
from services.text_worker.training.fit import Outcome, Trainer, held_out_loss
from services.text_worker.training.network import Network
from services.text_worker.training.settings import Fit, Shape
from services.text_worker.training.vocabulary import BEGIN, END, token_stream, train_tokenizer, variants

SHAPE = Shape(vocab=400, hidden=32, layers=2, heads=4, kv_heads=2, mlp=48, context=32)
FIT = Fit(steps=6, batch=2, warmup_steps=2, evaluate_every=3, dropout=0.1)


def documents() -> list[Document]:
    return without_repeats(topic_documents())


def test_prose_is_told_from_code() -> None:
    text = """
    Return the value of the named attribute of the object,
    which must be a string.

        >>> getattr(x, "name") is the same as the attribute of x.

    getattr(object, name[, default]) -> value, or raise an AttributeError.
    """
    kept = paragraphs_of(text)
    assert kept == ("Return the value of the named attribute of the object, which must be a string.",)
    assert not is_prose("if_stmt ::= 'if' assignment_expression ':' suite and so on and so on.")


def test_held_out_documents_are_not_trained_on() -> None:
    train, held_out = split(documents(), 0.2)
    shared = {p for d in train for p in d.paragraphs} & {p for d in held_out for p in d.paragraphs}
    assert train
    assert held_out
    assert not shared
    assert split(train[::-1], 0.2)[1] == []  # told apart by content: the same ones whatever the order


def trained(folder: Path, *stops: int) -> tuple[Trainer, Outcome, float]:
    """A tiny run to its end, stopped and resumed at each of `stops`; its held-out loss in fp32."""
    train, held_out = split(documents(), 0.2)
    tokenizer = train_tokenizer([text for d in train for text in variants(d)], SHAPE.vocab)
    streams = [token_stream(tokenizer, part[:8], stride=16, seed=1) for part in (train, held_out)]
    folder.mkdir()
    for steps in (*stops, FIT.steps):
        torch.manual_seed(0)
        trainer = Trainer(Network(SHAPE, FIT.dropout), FIT, SHAPE.context, folder)
        trainer.resume()
        while trainer.step < steps:
            trainer.train_step(streams[0])
        trainer.evaluate(streams[1], 0.0)
    assert trainer.best is not None
    write_checkpoint(folder / "model", trainer.network, tokenizer, SHAPE)
    rounded_to_shipped(trainer.network)
    loss = held_out_loss(trainer.network, streams[1], SHAPE.context, FIT.batch, exact=True)
    return trainer, trainer.best, loss


def test_a_stopped_run_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    whole, _, whole_loss = trained(tmp_path / "whole")
    resumed, _, resumed_loss = trained(tmp_path / "resumed", 2, 5)
    assert whole_loss == resumed_loss
    for ours, theirs in zip(whole.network.parameters(), resumed.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_worker_computes_what_was_trained(tmp_path: Path) -> None:
    trainer, outcome, _ = trained(tmp_path / "run")
    folder = tmp_path / "run" / "model"
    architecture = load_architecture(folder)
    tokenizer = load_tokenizer(folder, architecture)
    tokens = tokenizer.encode("The with statement")[: SHAPE.context]
    model = DenseModel.load(folder, architecture)
    logits = model.forward([Span(0, 0, tuple(tokens))], KvCache(architecture, slots=1, context=SHAPE.context))
    with torch.no_grad():
        expected = trainer.network.eval()(torch.tensor([tokens]))[0, -1]
    torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=1e-4)
    assert tokens[0] == tokenizer.tokenizer.token_to_id(BEGIN)
    assert architecture.eos_ids == tokenizer.eos_ids == {tokenizer.tokenizer.token_to_id(END)}
    assert outcome.trained_tokens == outcome.step * FIT.batch * SHAPE.context


def test_a_run_without_steps_is_refused(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a b c"], 300)
    stream = token_stream(tokenizer, [Document(None, ("a b c " * 40,))], stride=16, seed=1)
    trainer = Trainer(Network(SHAPE, 0.0), replace(FIT, steps=0), SHAPE.context, tmp_path)
    with pytest.raises(RuntimeError, match="steps must be at least 1"):
        trainer.run(stream, stream)
