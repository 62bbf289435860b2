"""The command line: `distill-lit run experiments/quickstart.yaml`."""

import argparse
import os
import sys

from distill_lit.cli.commands import (
    cache,
    cost,
    doctor,
    evaluate,
    export,
    fetch,
    generate,
    hypotheses,
    init,
    plan,
    report,
    run,
    scaling,
    schema,
    serve_tensorboard,
    status,
    stop,
    table,
)
from distill_lit.cli.commands import list as list_command
from distill_lit.cli.errors import (
    PipeSafeConsole,
    log_traceback,
    print_error,
    replace_closed_output,
    replace_unencodable_output,
)
from distill_lit.cli.exit_codes import BAD_INPUT, FAILED, INTERRUPTED
from distill_lit.utils.distributed.cluster_environment import remove_cluster_variables
from distill_lit.utils.exceptions import FatalRunError, UserError, error_summary
from distill_lit.utils.files import permission_error_message

COMMANDS = (
    init, run, plan, status, stop, generate, cache, cost, fetch, evaluate, export, report, table, hypotheses, scaling,
    list_command, schema, doctor, serve_tensorboard,
)  # fmt: skip
EPILOG = """examples:
  distill-lit init my_experiment                                    a commented experiment file to begin with
  distill-lit plan experiments/quickstart.yaml                      runs, tokens, disk and minutes, before anything is run
  distill-lit run experiments/quickstart.yaml                       run what is not done yet, then draw the report
  distill-lit run experiments/quickstart.yaml training.max_tokens=200000 name=longer
  distill-lit status experiments/quickstart.yaml                    which runs are done, failed, missing
  distill-lit stop experiments/quickstart.yaml                      cancel its SLURM jobs, or stop it on this machine
  distill-lit evaluate file:runs/quickstart/…/student 'tasks=[piqa,sciq]' limit=200
  distill-lit export file:runs/quickstart/…/student --quantization q8_0       one GGUF file, for llama.cpp
  distill-lit report results/quickstart                             draw tables and figures again, from records alone
  distill-lit table results/quickstart --out table.tex              a table for a paper
  distill-lit tensorboard runs/quickstart
  distill-lit doctor                                                check this machine, and say how to fix what is wrong

exit codes: 0 done, 1 failed, 2 bad input (nothing was written), 3 some runs failed, 130 interrupted, 143 terminated
"""


def build_parser() -> argparse.ArgumentParser:
    """All commands and their help."""
    parser = argparse.ArgumentParser(
        prog="distill-lit",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Distill causal language models, benchmark students against their teacher, and see what was lost.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Parses, runs, and exits with the code that `--help` lists."""
    replace_closed_output()
    remove_cluster_variables()
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes no positional after an option, and `--root elsewhere key=value` is what people write
    if any(word.startswith("-") or "=" not in word for word in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    replace_unencodable_output()
    try:
        _check_current_folder()
        code = options.run(options, PipeSafeConsole.of_output())
    except UserError as error:
        code = print_error(str(error), BAD_INPUT)
    except FatalRunError as error:
        code = print_error(str(error), FAILED)
    except KeyboardInterrupt:
        code = print_error("interrupted; the same command begins again with what is not done", INTERRUPTED)
    except Exception as error:
        if denied := permission_error_message(error):
            code = print_error(denied, BAD_INPUT)
        else:
            code = print_error(f"{error_summary(error)} (traceback: {log_traceback()})", FAILED)
    sys.exit(code)


def _check_current_folder() -> None:
    """Raises UserError where the folder that the command was typed in has been removed."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the current folder is not there any more; cd to one that is") from error


if __name__ == "__main__":
    main()
