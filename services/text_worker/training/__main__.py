"""One command that makes the default text model: corpus, vocabulary, weights, card. Resumes if stopped."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from services.text_worker.cpu.linear import WeightKind
from services.text_worker.fidelity import Fidelity, fidelity, windows_of
from services.text_worker.model.families import load_architecture
from services.text_worker.tokenizer import load_tokenizer
from services.text_worker.training import corpus
from services.text_worker.training.card import Data, Held, write_card
from services.text_worker.training.export import rounded_to_shipped, write_checkpoint
from services.text_worker.training.fit import Trainer, held_out_loss
from services.text_worker.training.network import Network
from services.text_worker.training.settings import Fit, Shape
from services.text_worker.training.vocabulary import token_stream, train_tokenizer, variants

log = logging.getLogger("training")
FEWER_BITS: tuple[WeightKind, ...] = ("bf16", "int8")
FIDELITY_WINDOWS = 256
STRIDE = 256  # tokens between the windows that start inside one long document


def main(
    out: Annotated[Path, typer.Option(help="Folder that the finished model is written to.")] = Path("models/text"),
    work: Annotated[Path, typer.Option(help="Folder for checkpoints; kept, so that a stopped run goes on.")] = Path(
        "build/text-training"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps; the cosine ends with the last.")] = Fit.steps,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = Fit.batch,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, windows and dropout.")] = Fit.seed,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Trains the default text model on the prose that this Python carries, and writes it with its card."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    make(out, work, Shape(), replace(Fit(), steps=steps, batch=batch, seed=seed))


def make(out: Path, work: Path, shape: Shape, fit: Fit) -> None:
    """Fits the model, or goes on with what `work` holds; writes the best weights and card to `out`."""
    documents = corpus.collect()
    train, held_out = corpus.split(documents, fit.held_out_share)
    log.info("corpus: %d documents, %d held out", len(documents), len(held_out))
    tokenizer = train_tokenizer([text for document in train for text in variants(document)], shape.vocab)
    streams = [token_stream(tokenizer, part, stride=STRIDE, seed=fit.seed) for part in (train, held_out)]
    torch.manual_seed(fit.seed)
    network = Network(shape, fit.dropout)
    trainer = Trainer(network, fit, shape.context, work)
    trainer.resume()
    outcome = trainer.run(*streams)
    network.load_state_dict(torch.load(work / "best.pt", weights_only=True))
    rounded_to_shipped(network)
    write_checkpoint(out, network, tokenizer, shape)
    held = Held(
        loss=held_out_loss(network, streams[1], shape.context, fit.batch, exact=True),
        tokens=len(streams[1].tokens),
        text_bytes=sum(len(text.encode()) for document in held_out for text in variants(document)),
    )
    data = Data(len(documents), len(held_out), len(streams[0].tokens), corpus.digest(documents))
    write_card(out, shape, fit, data, outcome, held, fewer_bits(out, held_out))
    log.info("written to %s: held-out loss %.4f nats a token", out, held.loss)


def fewer_bits(folder: Path, held_out: Sequence[corpus.Document]) -> dict[str, Fidelity]:
    """What each kind of weights changes on held-out text, in the checkpoint in `folder`."""
    architecture = load_architecture(folder)
    text = "\n\n".join(document.text for document in held_out)
    windows = list(windows_of(load_tokenizer(folder, architecture).encode(text), FIDELITY_WINDOWS))
    return {kind: fidelity(folder, architecture, kind, windows) for kind in FEWER_BITS}


if __name__ == "__main__":
    typer.run(main)
