"""Chat templates: Transformers' conventions, typed refusals, and bounds on hostile ones."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

from headrace.checkpoint.chat_template import (
    ChatTemplate,
    MissingTemplateVariable,
    TemplateError,
)
from headrace.checkpoint.hf_checkpoint import HuggingFaceCheckpoint
from headrace.link.errors import ConfigurationError, ErrorCode, InvalidRequest

USER = {"role": "user", "content": "What is 2 < 3?"}
CHATS = [
    [USER],
    [{"role": "system", "content": " Be brief. "}, USER],
    [USER, {"role": "assistant", "content": "Yes & no"}, {"role": "user", "content": "Why?\n"}],
]

HEADER_STYLE = """{{ bos_token }}
{%- set first = messages[0] -%}
{%- if first.role == 'system' %}
    {%- set preamble = first['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set preamble = '' %}
{%- endif %}
<|header|>system<|/header|>

{% if tools is not none %}
Tools: {{ tools | tojson(indent=2) }}
{% endif %}
Date: {{ strftime_now('%Y') }}
{{ preamble }}<|turn|>
{%- for message in messages %}
    {%- generation %}
<|header|>{{ message.role }}<|/header|>

{{ message.content | trim }}<|turn|>
    {%- endgeneration %}
{%- endfor %}
{% if add_generation_prompt %}<|header|>assistant<|/header|>

{% endif %}"""

BRACKET_STYLE = """{%- if messages[0]['role'] == 'system' -%}
  {%- set lead = messages[0]['content'] + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set lead = '' -%}{%- set turns = messages -%}{%- endif -%}
{{- bos_token -}}
{%- for turn in turns -%}
  {%- if (turn['role'] == 'user') != (loop.index0 is even) -%}
    {{- raise_exception('roles must alternate, starting with user') -}}
  {%- endif -%}
  {%- if turn['role'] == 'user' -%}
    {{- '[Q] ' + (lead if loop.last else '') + turn['content'] + ' [/Q]' -}}
  {%- elif turn['role'] == 'assistant' -%}
    {{- ' ' + turn['content'] + eos_token -}}
  {%- endif -%}
{%- endfor -%}"""

TURN_STYLE = """{% set ns = namespace(seen=false) %}
{% for message in messages %}
    {% if loop.first and message.role != 'system' %}
<|start|>system
A helper.<|stop|>
    {% endif %}
    {% if message.role == 'tool' %}{% continue %}{% endif %}
<|start|>{{ message['role'] ~ '\\n' ~ message['content'] }}<|stop|>
    {% set ns.seen = true %}
{% endfor %}
{% if add_generation_prompt and ns.seen %}
<|start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
{% endif %}"""

STYLES = {"header": HEADER_STYLE, "bracket": BRACKET_STYLE, "turn": TURN_STYLE}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<é>", "parameters": {}}}]


def _template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.fixture(scope="module")
def transformers_tokenizer():
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_transformers(transformers_tokenizer, style, chat, prompt):
    source = STYLES[style]
    rendered = _template(source).render(chat, add_generation_prompt=prompt)
    assert rendered == transformers_tokenizer.apply_chat_template(
        chat, chat_template=source, add_generation_prompt=prompt, tokenize=False
    )


def test_tools_and_variables_as_transformers(transformers_tokenizer):
    rendered = _template(HEADER_STYLE).render([USER], tools=TOOLS)
    assert rendered == transformers_tokenizer.apply_chat_template(
        [USER], chat_template=HEADER_STYLE, tools=TOOLS, add_generation_prompt=True, tokenize=False
    )
    assert '"<é>"' in rendered
    silent = _template(TURN_STYLE).render([USER], variables={"enable_thinking": False})
    assert silent.endswith("<think></think>")


@pytest.mark.parametrize("chat", CHATS)
def test_builtin_template_as_transformers(builtin, builtin_tokenizer, chat):
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({"a": 0}, unk_token="a"))
    tokens = dict(builtin.special_tokens)
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    rendered = builtin.load_chat_template().render(chat)
    assert rendered == theirs.apply_chat_template(
        chat,
        chat_template=builtin.chat_templates["default"],
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = builtin_tokenizer.encode(rendered, add_special_tokens=False)
    assert ids[0] == builtin_tokenizer.token_id("<|im_start|>")
    assert ids[1] != ids[0]


def test_content_parts_are_joined_and_others_refused_by_name():
    template = _template("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert template.render(messages) == "[ab][]"
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(InvalidRequest, match=r"messages\[1\]\.content\[0\]\.type.*image_url"):
        template.render([USER, {"role": "user", "content": [image]}])
    with pytest.raises(InvalidRequest, match=r"messages\[0\]\.content\[0\]\.text"):
        template.render([{"role": "user", "content": [{"type": "text"}]}])
    with pytest.raises(InvalidRequest, match=r"content\[0\]"):
        template.render([{"role": "user", "content": ["bare"]}])


def test_a_refusal_keeps_its_message():
    with pytest.raises(TemplateError, match=r"^roles must alternate, starting") as caught:
        _template(BRACKET_STYLE).render([{"role": "assistant", "content": "hi"}])
    assert caught.value.code is ErrorCode.TEMPLATE


def test_a_missing_variable_has_its_own_code():
    with pytest.raises(MissingTemplateVariable, match="user_name") as caught:
        _template("{{ user_name.first }}").render([USER])
    assert caught.value.code is ErrorCode.MISSING_TEMPLATE_VARIABLE


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if %}", "invalid"),
        ("{{ messages", "invalid"),
        ("{% include 'x' %}", "chat template"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages[0].content + 1 }}", "chat template"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% for a in range(10**9) %}{% endfor %}", "number|Range"),
        ("{% for i in range(99) %}{{ 'x' * 999999 }}{% endfor %}", "exceeds"),
        ("{{ 'x' * 10**12 }}", "more than"),
        ("{{ [0] * 10**12 }}", "more than"),
        ("{{ 10 ** 10000 }}", "power"),
        ("{{ 'x'.ljust(10**12) }}", "number"),
        (
            "{% set ns = namespace(x='a') %}{% for i in range(99) %}"
            "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "more than",
        ),
        (
            "{% set ns = namespace(x='a') %}{% for i in range(99) %}"
            "{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "more than",
        ),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recursion"),
    ],
)
def test_broken_and_hostile_templates(source, reason):
    start = time.monotonic()
    with pytest.raises(TemplateError, match=reason) as caught:
        _template(source).render([USER])
    assert caught.value.code is ErrorCode.TEMPLATE
    assert time.monotonic() - start < 10


def test_python_internals_are_not_there():
    assert _template("{{ raise_exception.__globals__ }}").render([USER]) == ""


def test_exponential_recursion_is_stopped_by_the_clock(monkeypatch):
    monkeypatch.setattr("headrace.checkpoint.template_sandbox.MAX_SECONDS", 0.2)
    source = (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    )
    with pytest.raises(TemplateError, match="runs for more than"):
        _template(source).render([USER])


def test_no_template_at_all():
    template = ChatTemplate({}, {})
    assert not template.exists
    with pytest.raises(TemplateError, match="no chat template: send a prompt"):
        template.render([USER])


def test_tool_template_is_chosen_and_named_ones_found():
    template = ChatTemplate({"default": "plain", "tool_use": "tools", "rag": "rag"}, {})
    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=TOOLS) == "tools"
    assert template.render([USER], name="rag") == "rag"
    with pytest.raises(TemplateError, match="no chat template named 'nope'"):
        template.render([USER], name="nope")


# Where a directory keeps its templates.


def _directory(path: Path, **tokenizer_config) -> HuggingFaceCheckpoint:
    (path / "config.json").write_text("{}")
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return HuggingFaceCheckpoint("m", path)


def test_template_in_tokenizer_config(tmp_path):
    checkpoint = _directory(tmp_path, chat_template="{{ bos_token }}!", bos_token="<b>")
    assert checkpoint.load_chat_template().render([USER]) == "<b>!"


def test_list_of_named_templates(tmp_path):
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    assert _directory(tmp_path, chat_template=named).chat_templates == {
        "default": "d",
        "tool_use": "t",
    }


def test_template_files_win(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag")
    checkpoint = _directory(tmp_path, chat_template="inline")
    assert checkpoint.chat_templates == {"default": "file", "rag": "rag"}


def test_template_file_that_is_no_text(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"chat_template\.jinja.*UTF-8"):
        _ = _directory(tmp_path).chat_templates
