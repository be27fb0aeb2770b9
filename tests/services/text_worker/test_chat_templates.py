"""Chat templates render as `transformers` renders them, inside the sandbox."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from services.text_worker.chat_template import ChatTemplate, load_chat_template
from services.text_worker.model.config import CheckpointError
from services.text_worker.training.vocabulary import CHAT_TEMPLATE

SECTIONS = """{% set loop_messages = messages %}
{%- for message in loop_messages %}
    {%- if message.role == 'assistant' and not loop.first %}
        {{- '<|a|>' + message.content|trim }}
    {%- else %}
        {{- bos_token + '[' ~ message.role ~ '] ' + message.content | tojson }}
    {%- endif %}
    {% if loop.index > 5 %}{% break %}{% endif %}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|a|>\\n' }}{% endif %}"""
MESSAGES = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": 'What is "slack"? äöü <b>'},
    {"role": "assistant", "content": "Time left."},
    {"role": "user", "content": "And a rung?"},
]


def template_of(folder: Path, config: dict[str, Any]) -> ChatTemplate:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    template = load_chat_template(folder)
    assert template is not None
    return template


@pytest.mark.parametrize("source", [SECTIONS, CHAT_TEMPLATE])
def test_renders_as_transformers_does(source: str, tmp_path: Path) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>")
    expected = theirs.apply_chat_template(MESSAGES, chat_template=source, tokenize=False, add_generation_prompt=True)
    for bos in ("<s>", {"content": "<s>", "special": True}):
        ours = template_of(tmp_path, {"bos_token": bos, "chat_template": source})
        assert ours.render(MESSAGES) == expected


def test_a_jinja_file_comes_first(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("file")
    assert template_of(tmp_path, {"chat_template": "config"}).render(MESSAGES) == "file"


def test_a_checkpoint_may_have_none(tmp_path: Path) -> None:
    assert load_chat_template(tmp_path) is None


@pytest.mark.parametrize("source", ["{% for %}", "x" * 300_000, ["list"]])
def test_a_template_that_cannot_be_used_is_refused(source: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="chat_template"):
        template_of(tmp_path, {"chat_template": source})


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ raise_exception('no system role') }}",
        "{{ messages[0].content + 1 }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    ],
)
def test_what_a_template_may_not_do_is_a_value_error(source: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="messages: "):
        template_of(tmp_path, {"chat_template": source}).render(MESSAGES)


def test_the_default_template_refuses_unknown_roles(tmp_path: Path) -> None:
    template = template_of(tmp_path, {"bos_token": "<s>", "chat_template": CHAT_TEMPLATE})
    with pytest.raises(ValueError, match="unknown role: wizard"):
        template.render([{"role": "wizard", "content": "hi"}])
