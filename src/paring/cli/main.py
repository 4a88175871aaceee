"""``paring``: builds the parser of the command that was asked for, and turns every error into one sentence and a status."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

import paring
from paring.cli.commands import COMMANDS
from paring.cli.console import USAGE, calm, complain, guarded
from paring.cli.flags import MODE, Command, flags_first, hyphens
from paring.cli.plain import PlainLoader, where, why
from paring.cli.reword import reworded
from paring.core.errors import SettingError, near


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``paring``; those of the process if not given.

    Returns:
        The exit status: 0 done, 1 failed, 2 a wrong command line, 130 interrupted.
    """
    words = hyphens(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    calm(debug)
    if not words:
        with redirect_stdout(sys.stderr):  # it was not asked for
            _run(["--help"])
        return USAGE
    return guarded(lambda: _run(words), debug)


def _run(words: Sequence[str]) -> int:
    asked = next((word for word in words if not word.startswith("-")), None)
    command = next((item for item in COMMANDS if item.name == asked), None)
    if asked is not None and command is None:
        names = [item.name for item in COMMANDS]
        complain(f"Unknown command {asked!r}.{near(asked, names)} Commands: {', '.join(names)}; see paring --help.")
        return USAGE
    try:
        for path in _configs(words):
            _check_config(path)
        parser, flags = _parser(command, words)
        after = 0 if asked is None else words.index(asked) + 1
        values: Namespace = parser.parse_args([*words[:after], *flags_first(flags, words[after:])])
    except ArgumentError as error:
        known = sorted({name.lstrip("-") for action in (flags._actions if command else []) for name in action.option_strings})
        text = reworded(str(error), known, words).strip()
        stop = "" if text.endswith((".", "?", "!")) else "."
        complain(f"{text}{stop} See paring {command.name} --help." if command else f"{text}{stop} See paring --help.")
        return USAGE
    except SettingError as error:  # a configuration that is none, or a method that is not there
        complain(str(error))
        return USAGE
    except SystemExit as done:  # --help, --version, --print_config
        return done.code if isinstance(done.code, int) else 0
    assert command is not None
    return command.run(values[command.name])


def _parser(command: Command | None, words: Sequence[str]) -> tuple[ArgumentParser, ArgumentParser]:
    """The whole parser and that of ``command``; the other commands have their name and summary only, which is all they need."""
    top = ArgumentParser(
        prog="paring",
        description="Fine-tune pre-trained models with low-rank adapters whose ranks are found while they train.",
        epilog="Every flag can also stand in a YAML file: paring COMMAND --config FILE. --debug shows tracebacks.",
        version=paring.__version__,
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode=MODE,
    )
    subcommands = top.add_subcommands(metavar="COMMAND", required=True)
    chosen = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for item in COMMANDS:
        parser = ArgumentParser(description=item.summary, exit_on_error=False, allow_abbrev=False, parser_mode=MODE)
        if item is command:
            chosen = parser
            parser.add_argument("--config", action="config", help="a YAML file with any of these flags; flags given here win over it")
            item.fill(parser, words)
        subcommands.add_subcommand(item.name, parser, help=item.summary)
    return top, chosen


def _configs(words: Sequence[str]) -> Iterator[Path]:
    """The files that ``--config`` names."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name = word.removeprefix("--config=") if word.startswith("--config=") else following if word == "--config" else ""
        if name and Path(name).is_file():
            yield Path(name)


def _check_config(path: Path) -> None:
    """Refuse what is no YAML mapping, for which parsers have words of their own that do not name the file.

    Raises:
        SettingError: says which line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingError(
            f"--config {str(path)!r} is no text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error
    try:
        content = PlainLoader(text).get_single_data()
    except yaml.YAMLError as error:
        said = f"line {where(error, text)}: {why(error)}"
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            said = f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
            if error.context_mark is not None:
                said += f" {error.context} that begins in line {error.context_mark.line + 1}"
        raise SettingError(
            f"--config {str(path)!r} is no valid YAML: {said}. Mend that line; a file of flags holds lines such as `learning_rate: 0.001`."
        ) from error
    if not isinstance(content, dict):
        kinds = {type(None): "nothing", list: "a list"}
        raise SettingError(
            f"--config {str(path)!r} holds {kinds.get(type(content), f'only {str(content)[:40]!r}')}, where flags are expected: "
            "write one a line, as in `learning_rate: 0.001`."
        )
