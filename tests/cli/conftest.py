"""Commands, run in this process or several in one new process."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from cmfah_hf.cli import main


@dataclass(frozen=True)
class Outcome:
    """The result of a command: exit code, standard output, and standard error."""

    code: int
    out: str
    err: str

    @property
    def document(self):
        """Standard output as one JSON document."""
        return json.loads(self.out)


@pytest.fixture
def cmfah(capsys, monkeypatch, datasets_cache):
    """A function that runs a command in this process."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")  # `main` keeps values that are already set
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return Outcome(left.value.code or 0, streams.out, streams.err)

    return run


# Standard error as a user sees it: real logging, real progress bars, nothing captured by pytest.
PROGRAM = """
import json, os, sys
from cmfah_hf.cli import main

outcomes = []
for arguments in json.load(open(sys.argv[1])):
    streams = [os.dup(1), os.dup(2)]
    names = [f"{sys.argv[2]}.{number}" for number in (1, 2)]
    for number, name in enumerate(names, 1):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    code = 0
    try:
        main(arguments)
    except SystemExit as left:
        code = left.code
    except BaseException as error:
        code = repr(error)
    sys.stdout.flush(), sys.stderr.flush()
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
    outcomes.append([code, *(open(name, encoding="utf-8", errors="surrogateescape").read() for name in names)])
json.dump(outcomes, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="session")
def run_in_a_new_process(tmp_path_factory):
    """A function that runs commands one after the other in a new process and returns their results.

    `prefix`: the beginning of its command line.
    """

    def run(commands: list[list[str]], environment: dict[str, str], prefix: Sequence[str] = ()) -> list[Outcome]:
        folder = tmp_path_factory.mktemp("commands")
        (folder / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
        process = subprocess.run(
            [*prefix, sys.executable, "-c", PROGRAM, str(folder / "commands.json"), str(folder / "outcomes")],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert process.returncode == 0, process.stderr
        return [Outcome(*outcome) for outcome in json.loads((folder / "outcomes").read_text(encoding="utf-8"))]

    return run
