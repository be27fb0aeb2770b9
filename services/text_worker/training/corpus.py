"""English prose that every CPython installation carries, under the PSF licence.

Sources: the language reference in `pydoc_data.topics`, the docstrings and comment blocks of the standard
library's modules, and the docstrings of its extension modules. Only paragraphs of sentences are kept.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import io
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

SKIPPED_FOLDERS = frozenset({"site-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"})
REPLACED = frozenset({"excepthook"})  # a running program may have put its own there
MIN_PARAGRAPH_CHARS = 40
WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*[.,;:!?)]*$")
LEGAL = re.compile(r"copyright|warrant|licen[sc]e[ds]?\b|all rights reserved", re.IGNORECASE)
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Document:
    """Prose paragraphs and, where the text explains something, the question that it answers."""

    question: str | None
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)


def is_prose(paragraph: str) -> bool:
    """Whether a joined paragraph reads as sentences rather than as a signature, a table or code."""
    if len(paragraph) < MIN_PARAGRAPH_CHARS or not paragraph.rstrip("\"')").endswith((".", "!", "?", ":")):
        return False
    if any(mark in paragraph for mark in (">>>", "::=", " = ", "==", "@@", "{{", "----", "____", "->", "|")):
        return False
    words = paragraph.split()
    plain = sum(1 for word in words if WORD.match(word.lstrip("\"'(")))
    return len(words) >= 8 and plain >= 0.75 * len(words) and not LEGAL.search(paragraph)


def paragraphs_of(text: str) -> tuple[str, ...]:
    """The prose paragraphs of indented, hard-wrapped text, each joined to one line."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(text))
    joined = (" ".join(block.split()) for block in blocks)
    return tuple(paragraph for paragraph in joined if is_prose(paragraph))


def topic_documents() -> Iterator[Document]:
    """The language reference as `help()` shows it, one document a topic."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield Document(f"Explain {name} in Python.", paragraphs_of(text))


def source_documents(root: Path) -> Iterator[Document]:
    """Docstrings and comment blocks of every module below `root`, tests and installed packages left out."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if SKIPPED_FOLDERS.isdisjoint(parts):
            module = ".".join(parts)[: -len(".py")].removesuffix(".__init__")
            source = path.read_text(encoding="utf-8", errors="replace")
            yield from _docstrings(module, source)
            yield from (Document(None, paragraphs_of(block)) for block in _comment_blocks(source))


def _docstrings(module: str, source: str) -> Iterator[Document]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escapes are no concern of ours
        tree = ast.parse(source)
    stack: list[tuple[str, ast.AST]] = [(module, tree)]
    while stack:
        name, node = stack.pop()
        if isinstance(node, Documented):
            yield Document(_question(name, node), paragraphs_of(ast.get_docstring(node) or ""))
        inner = (child for child in ast.iter_child_nodes(node) if isinstance(child, Documented))
        stack.extend((f"{name}.{child.name}", child) for child in inner if not isinstance(child, ast.Module))


def _question(name: str, node: ast.AST | None) -> str:
    return f"What does {name} do?" if isinstance(node, ast.FunctionDef) else f"What is {name}?"


def _comment_blocks(source: str) -> Iterator[str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")]
    for _, run in groupby(enumerate(comments), key=lambda pair: pair[1].start[0] - pair[0]):
        yield "\n".join(token.string.lstrip("#!").removeprefix(" ") for _, token in run)


def extension_documents() -> Iterator[Document]:
    """Docstrings of the builtins and of the standard modules that are written in C."""
    for name in sorted(sys.stdlib_module_names):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or spec.origin == "frozen" or spec.origin.endswith(".py"):
            continue
        module = importlib.import_module(name)
        yield Document(f"What is {name}?", paragraphs_of(module.__doc__ or ""))
        yield from _members(name, module, depth=2)


def _members(prefix: str, owner: object, depth: int) -> Iterator[Document]:
    for name, member in sorted(vars(owner).items()):
        doc = getattr(member, "__doc__", None)
        described = callable(member) or inspect.isdatadescriptor(member)
        if name.startswith("__") or name in REPLACED or not described or not isinstance(doc, str):
            continue
        question = f"What is {prefix}.{name}?" if inspect.isclass(member) else f"What does {prefix}.{name} do?"
        yield Document(question, paragraphs_of(doc))
        if inspect.isclass(member) and depth > 1:
            yield from _members(f"{prefix}.{name}", member, depth - 1)


def without_repeats(documents: Iterable[Document]) -> list[Document]:
    """The documents with each paragraph kept only where it is met first; empty ones are dropped."""
    seen: set[str] = set()
    kept: list[Document] = []
    for document in documents:
        fresh = tuple(p for p in dict.fromkeys(document.paragraphs) if p not in seen)
        seen.update(fresh)
        if fresh:
            kept.append(Document(document.question, fresh))
    return kept


def collect() -> list[Document]:
    """Every document of this Python installation, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    return without_repeats([*topic_documents(), *source_documents(root), *extension_documents()])


def split(documents: list[Document], held_out_share: float) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents, told apart by the hash of their text so that no order matters."""
    limit = int(held_out_share * 2**32)
    held = [int(hashlib.sha256(d.text.encode()).hexdigest()[:8], 16) < limit for d in documents]
    train = [d for d, out in zip(documents, held, strict=True) if not out]
    return train, [d for d, out in zip(documents, held, strict=True) if out]


def digest(documents: list[Document]) -> str:
    """The sha256 of the whole corpus: a card names the exact data with it."""
    return hashlib.sha256("\0".join(f"{d.question}\1{d.text}" for d in documents).encode()).hexdigest()
