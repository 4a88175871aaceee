"""The subcommands, one small file each."""

from paring.cli.commands import compress, demo, evaluate, export, extract, fuse, inspect, merge, methods, predict, study, train, verify
from paring.cli.flags import Command

COMMANDS: tuple[Command, ...] = (
    train.COMMAND,
    train.PATH,
    export.COMMAND,
    compress.COMMAND,
    extract.COMMAND,
    merge.COMMAND,
    inspect.COMMAND,
    verify.COMMAND,
    predict.COMMAND,
    evaluate.COMMAND,
    fuse.COMMAND,
    methods.COMMAND,
    study.COMMAND,
    demo.COMMAND,
)
