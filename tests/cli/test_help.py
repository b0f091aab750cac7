"""``--help``: sections, width, and that it is fast because nothing heavy is imported."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from headrace.cli.main import cli
from headrace.cli.settings.assemble import DECLARED
from headrace.cli.settings.declared import SECTIONS
from headrace.cli.settings.foreign import FOREIGN

HEAVY = {"torch", "numpy", "fastapi", "pydantic", "uvicorn", "tokenizers", "httpx", "rich"}


def help_of(*arguments: str) -> str:
    # A wide terminal must not stretch the text.
    result = CliRunner().invoke(cli, [*arguments, "--help"], env={"COLUMNS": "240"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("command", [(), ("serve",), ("chat",), ("doctor",)])
def test_help_keeps_to_a_hundred_columns(command):
    lines = help_of(*command).splitlines()
    assert lines[0].startswith("Usage: ")
    assert max(map(len, lines)) <= 100


def test_every_command_is_listed_with_its_line():
    text = help_of()
    for name in ("serve", "chat", "doctor"):
        assert any(
            line.split()[:1] == [name] and len(line.split()) > 3 for line in text.split("\n")
        )


def test_serve_help_has_every_section_setting_and_foreign_flag():
    text = " ".join(help_of("serve").split())
    for section in SECTIONS:
        assert f"{section.title}:" in text
    for setting in DECLARED:
        assert setting.name in text
    for setting in FOREIGN:
        assert setting.name in text


def test_defaults_are_shown():
    text = " ".join(help_of("serve").split())
    assert "[3000]" in text
    assert "[2000000 bytes]" in text
    assert "[the built-in SmolLM2-135M-Instruct]" in text


def test_every_declared_flag_is_an_option_of_serve():
    context = click.Context(cli)
    command = cli.get_command(context, "serve")
    assert command is not None
    options = {name for parameter in command.params for name in parameter.opts}
    assert {setting.flag for setting in (*DECLARED, *FOREIGN)} <= options


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["chat", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    script = (
        "import sys\n"
        "from headrace.cli.main import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
