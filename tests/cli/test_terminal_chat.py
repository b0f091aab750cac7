"""The terminal's side of a chat, with a partner that repeats what it was told."""

from __future__ import annotations

import io

import pytest

from headrace.cli.conversation.partner import AnswerStyle, Message
from headrace.cli.conversation.terminal import TerminalChat
from headrace.link.errors import HeadraceError


class Parrot:
    """Answers with the number of turns and the last of them, in pieces."""

    name = "parrot"

    def __init__(self) -> None:
        self.asked: list[list[Message]] = []
        self.closed_early = 0

    def answer(self, messages, style):
        self.asked.append(messages)
        try:
            if messages[-1].content == "fail":
                raise HeadraceError("the parrot has flown")
            yield f"{len(messages)}:"
            if messages[-1].content == "interrupt":
                raise KeyboardInterrupt
            yield messages[-1].content
        except GeneratorExit:
            self.closed_early += 1
            raise

    def close(self):
        pass


@pytest.fixture
def talk(monkeypatch, capsys):
    def run(text: str, *, interactive: bool = False, system: str | None = None):
        parrot = Parrot()
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        status = TerminalChat(parrot, AnswerStyle(), system, interactive=interactive).run()
        captured = capsys.readouterr()
        return status, captured.out, captured.err, parrot

    return run


def test_a_pipe_gets_answers_only(talk):
    status, out, err, _ = talk("hello\n\nagain\n")
    assert (status, out, err) == (0, "1:hello\n3:again\n", "")


def test_history_is_kept_and_reset_forgets_it(talk):
    _, out, _, parrot = talk("one\ntwo\n/reset\nthree\n")
    assert out == "1:one\n3:two\n1:three\n"
    assert [message.role for message in parrot.asked[1]] == ["user", "assistant", "user"]
    assert parrot.asked[1][1].content == "1:one"


def test_system_message_begins_the_conversation(talk):
    _, out, _, parrot = talk("a\n/system be brief\nb\n/system\nc\n", system="be kind")
    assert out == "2:a\n2:b\n1:c\n"
    assert parrot.asked[0][0] == Message("system", "be kind")
    assert parrot.asked[1][0] == Message("system", "be brief")


def test_exit_ends_it(talk):
    assert talk("one\n/exit\ntwo\n")[1] == "1:one\n"


def test_unknown_command_is_not_sent_to_the_model(talk):
    status, out, err, parrot = talk("/rset\n")
    assert (status, out, parrot.asked) == (0, "", [])
    assert "/rset" in err


def test_a_failed_answer_is_one_line_and_leaves_the_history(talk):
    status, out, err, parrot = talk("one\nfail\ntwo\n")
    assert status == 1
    assert err == "headrace: the parrot has flown\n"
    assert out == "1:one\n3:two\n"
    assert [message.content for message in parrot.asked[2]] == ["one", "1:one", "two"]


def test_interrupt_stops_the_answer_and_not_the_chat(talk):
    status, out, _, parrot = talk("interrupt\nnext\n", interactive=True)
    assert status == 0
    assert "(stopped)" in out
    assert "3:next" in out
    assert parrot.asked[1][1] == Message("assistant", "1:")


def test_a_line_can_go_on(talk):
    _, _, _, parrot = talk("one \\\ntwo\n", interactive=True)
    assert parrot.asked[0][-1].content == "one \ntwo"


def test_text_of_the_model_is_never_taken_for_markup(talk):
    assert talk("[bold]x[/bold] :smile:\n")[1] == "1:[bold]x[/bold] :smile:\n"
