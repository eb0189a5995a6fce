"""Completion on TAB, as shells do it."""

import shutil
import subprocess

import pytest

from jaxdefense.cli import main

# What bash does on TAB: it fills the words, calls the function, and reads COMPREPLY.
_TAB = r"""
source "$1"; shift
how=$(complete -p "$1")
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=${how##*-F }
"${function%% *}" "$1" "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Function that completes a line in bash."""
    path = tmp_path_factory.mktemp("completion")
    (path / "captions.txt").touch()
    script = path / "script"
    with pytest.MonkeyPatch.context() as patch:
        told = []
        patch.setattr("builtins.print", lambda *args, **how: told.extend(args))
        assert main(["--completion", "bash"]) == 0
    script.write_text("".join(told))

    def tab(*words):
        done = subprocess.run(
            ["bash", "-c", _TAB, "bash", script, "jaxdefense", *words],
            capture_output=True,
            text=True,
            cwd=path,
        )
        assert not done.returncode and not done.stderr, done.stderr
        return done.stdout.split()

    return tab


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["def"], ["defend"]),
        (["defend", "t"], ["text"]),
        (["defend", "text", "--train.dist"], ["--train.distance"]),
        (["defend", "image", "--train.backdoor", ""], ["bounded", "target"]),
        (["attack", "--model", "m", "--log.w"], ["--log.wandb"]),
        (["defend", "both", "--out", "o", "--conf"], ["--config"]),
        (["defend", "text", "--captions", "cap"], ["captions.txt"]),
        (["defend", "text", "--config", "cap"], ["captions.txt"]),
    ],
)
def test_bash_completes(complete, words, wanted):
    assert complete(*words) == wanted


def test_bash_completes_every_command(complete):
    assert {"demo", "defend", "attack", "evaluate", "prove", "report", "sweep", "bench"} <= set(
        complete("")
    )


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_script_of_another_shell_parses(shell, capsys):
    assert main(["--completion", shell]) == 0
    script = capsys.readouterr().out
    assert "jaxdefense" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("shell", ["tcsh", ""])
def test_shell_that_is_not_known_is_refused(shell, capsys):
    assert main(["--completion", *[shell] * bool(shell)]) == 2
    assert "must be one of bash, zsh, fish" in capsys.readouterr().err
