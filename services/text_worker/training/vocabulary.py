"""The byte-level BPE vocabulary and the token stream that the model is trained on."""

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from services.text_worker.training.corpus import Document

BEGIN, END, USER, ASSISTANT, SYSTEM = "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = (BEGIN, END, USER, ASSISTANT, SYSTEM)

# One role marker, the trimmed content and an end mark for each message; jinja2 as `transformers` renders it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] | trim + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TokenStream:
    """Documents laid end to end, and where a training window may begin."""

    tokens: torch.Tensor  # [tokens] int64
    starts: torch.Tensor  # [windows] int64: document starts, and every `stride` tokens inside long ones


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """A byte-level BPE of `size` entries; with special tokens, encoding puts `BEGIN` first as Llama does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(f"{BEGIN} $A", special_tokens=[(BEGIN, begin)]),
        ]
    )
    return tokenizer


def variants(document: Document) -> list[str]:
    """How one document is read in training: as plain text and, where it answers a question, as a chat."""
    plain = f"{BEGIN}{document.text}{END}"
    if document.question is None:
        return [plain]
    return [plain, f"{BEGIN}{USER}\n{document.question}{END}\n{ASSISTANT}\n{document.text}{END}"]


def token_stream(tokenizer: Tokenizer, documents: list[Document], *, stride: int, seed: int) -> TokenStream:
    """Every variant of every document once, shuffled by `seed`."""
    texts = [text for document in documents for text in variants(document)]
    random.Random(seed).shuffle(texts)
    tokens: list[int] = []
    starts: list[int] = []
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        starts.extend(range(len(tokens), len(tokens) + len(encoding.ids), stride))
        tokens.extend(encoding.ids)
    return TokenStream(torch.tensor(tokens), torch.tensor(starts))
