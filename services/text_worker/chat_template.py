"""A checkpoint's chat template, rendered in a sandbox as `transformers` renders it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.text_worker.model.config import CheckpointError, read_json

MAX_TEMPLATE_CHARS = 256 * 1024
MAX_RENDERED_CHARS = 16 * 2**20


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled template and the special tokens that it may name."""

    template: Template
    special_tokens: Mapping[str, str]

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for an answer to `messages` (each with `role` and `content`).

        Raises ValueError with the template's own words when it refuses them.
        """
        parts: list[str] = []
        size = 0
        try:
            for part in self.template.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                **self.special_tokens,
            ):
                size += len(part)
                if size > MAX_RENDERED_CHARS:
                    raise ValueError(f"messages: rendered to more than {MAX_RENDERED_CHARS} characters")
                parts.append(part)
        except (TemplateError, SecurityError, TypeError, OverflowError) as error:
            raise ValueError(f"messages: the model's chat template refuses them: {error}") from error
        return "".join(parts)


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """From chat_template.jinja, else tokenizer_config.json; None without either. Raises CheckpointError."""
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    jinja = folder / "chat_template.jinja"
    if jinja.exists() and jinja.stat().st_size > 4 * MAX_TEMPLATE_CHARS:
        raise CheckpointError(f"chat_template.jinja: longer than {MAX_TEMPLATE_CHARS} characters")
    source = jinja.read_text(encoding="utf-8") if jinja.exists() else config.get("chat_template")
    if source is None:
        return None
    if not isinstance(source, str) or len(source) > MAX_TEMPLATE_CHARS:
        raise CheckpointError(f"chat_template: must be a text of at most {MAX_TEMPLATE_CHARS} characters")
    return ChatTemplate(_compile(source), _special_tokens(config))


def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise CheckpointError(f"chat_template: cannot be compiled: {error}") from error


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and the like: a text, or an object whose `content` is the text."""
    named = {key: value for key, value in config.items() if key.endswith("_token") and value is not None}
    contents = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
    return {key: value for key, value in contents.items() if isinstance(value, str)}
