"""The entry point of the command line: ``mllmu-nb COMMAND``, or ``python -m mllmu_nb COMMAND``."""

import argparse
import importlib
import os
import signal
import sys

from mllmu_nb import __version__
from mllmu_nb.errors import KitError

# Each is a module of mllmu_nb.commands, with EXAMPLES, arguments(parser) and main(options). Only that of the chosen
# command is imported, because most load torch.
COMMANDS = {
    "sweep": "run a grid of notebooks, then write scores, tables and figures",
    "ask": "ask vanilla, an unlearned model and the oracle one question about a person",
    "evaluate": "score a model or an adapter that was made elsewhere, and compare it with vanilla and the oracle",
    "judge": "grade free answers with a model behind an OpenAI-compatible endpoint",
    "card": "write a run's report card, one page of HTML",
    "verify": "compare scores, cell by cell, with the reference run or with published figures",
    "export": "write a run's people in the published layout, or its model in a folder for from_pretrained",
    "doctor": "say what is missing for the runs of a configuration, before they start",
    "study": "measure what each difference of the released code changes on the miniature",
    "utility": "measure MMMU and LLaVA-Bench of a run's exported model with lmms-eval, or read its output",
}


def main(arguments=None):
    """Run a command and return its exit status. Prints an error in the input as one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a sign that the encoding of a terminal or file lacks
            stream.reconfigure(errors="backslashreplace")

    def about(summary, examples):
        epilog = "examples:\n" + "\n".join(f"  mllmu-nb {example}" for example in examples)
        return {"description": summary, "epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}

    kit = about("Unlearning in multimodal models, as notebooks.", ("sweep configs/miniature.yaml", "ask --help"))
    parser = argparse.ArgumentParser(prog="mllmu-nb", **kit)
    parser.add_argument("--version", action="version", version=f"mllmu-nb {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True)
    try:
        given = sys.argv[1:] if arguments is None else arguments
        chosen = next((word for word in given if word in COMMANDS), None)
        for name, summary in COMMANDS.items():
            if name == chosen:
                module = importlib.import_module(f"mllmu_nb.commands.{name}")
                module.arguments(subparsers.add_parser(name, help=summary, **about(summary, module.EXAMPLES)))
            else:
                subparsers.add_parser(name, help=summary)
        options = parser.parse_args(given)
        status = module.main(options)
        if sys.stdout:  # None if it is closed
            sys.stdout.flush()
        return status
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader is gone, as after `| head`; discard what Python still writes when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, or a file that may not be read
        reason = " ".join(str(error.strerror or error).split())
        print(f"error: cannot read or write {error.filename or 'a file'} ({reason})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130


def run():
    """The console script. A command that gets SIGTERM also ends the processes that it has started, as after Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *received: sys.exit(143))
    sys.exit(main())


if __name__ == "__main__":
    run()
