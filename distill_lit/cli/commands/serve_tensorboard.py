"""`distill-lit tensorboard`: serves the curves, on this machine only."""

import argparse
import os
import socket
import sys
from pathlib import Path

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_command
from distill_lit.utils.exceptions import UserError


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "tensorboard",
        "Serve the curves of an experiment on this machine only.",
        "distill-lit tensorboard runs/quickstart",
        run,
    )
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), help="folder with event files (default: runs)"
    )
    parser.add_argument("--port", type=int, default=6006, help="port on 127.0.0.1 (default: 6006)")


def run(options: argparse.Namespace, console: Console) -> int:
    """Becomes TensorBoard."""
    if not options.folder.is_dir():
        raise UserError(f"{options.folder}: no such folder; event files are in runs/<experiment>")
    if not 0 < options.port < 1 << 16:
        raise UserError(f"--port {options.port}: a port is a number from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", options.port))
        except OSError as error:
            raise UserError(f"--port {options.port}: {error.strerror}; choose another with --port") from error
    console.print(f"curves of {options.folder} on http://127.0.0.1:{options.port}")
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(options.folder)]
    os.execvp(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(options.port)])
