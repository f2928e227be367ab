"""Completion in a shell, by the protocol of environment variables that its script speaks."""

import pytest

from cmfah_hf.cli import app


@pytest.fixture
def ask(monkeypatch, capsys):
    """A function that answers an instruction of the shell's script."""

    def run(instruction: str, words: str = "") -> str:
        monkeypatch.setenv("_CMFAH_COMPLETE", instruction)
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        with pytest.raises(SystemExit) as left:
            app([], prog_name="cmfah")
        assert not left.value.code
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("cmfah dup", ["duplicates"]),
        ("cmfah index in", ["info"]),
        ("cmfah index ", ["info", "remove"]),
        ("cmfah index my-", []),  # the shell completes names of files then
        ("cmfah index my-model re", []),
        ("cmfah index my-model --prune", ["--prune-missing-root"]),
        ("cmfah index info --js", ["--json"]),
        ("cmfah export on", ["onnx"]),
        ("cmfah data ins", ["inspect"]),
    ],
)
def test_commands_and_options_are_completed(ask, words, completed):
    assert ask("complete_bash", words).split() == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(ask, shell):
    script = ask(f"source_{shell}")
    assert "_CMFAH_COMPLETE=complete_" + shell in script
    assert "cmfah" in script
