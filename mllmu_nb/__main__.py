"""The one door: ``python -m mllmu_nb COMMAND``. An old Python can read this file, so that it can say it is old."""

import signal
import sys

OLDEST = (3, 11)
COMMANDS = (
    "sweep",
    "evaluate",
    "verify",
    "export",
    "doctor",
    "study",
)  # a module of mllmu_nb.commands each, with SUMMARY, arguments(parser) and main(options)


def main(arguments=None):
    """Runs a command and returns its exit status; what is wrong with the input is one line on standard error."""
    if sys.version_info[:2] < OLDEST:
        found = ".".join(str(part) for part in sys.version_info[:3])
        print("mllmu_nb needs Python %d.%d or newer, but this is %s" % (OLDEST + (found,)), file=sys.stderr)  # noqa: UP031
        return 2
    import argparse
    import importlib

    from mllmu_nb.errors import KitError

    parser = argparse.ArgumentParser(
        prog="python -m mllmu_nb", description="Unlearning in multimodal models, as notebooks."
    )
    subparsers = parser.add_subparsers(dest="command", required=True)
    modules = {}
    for name in COMMANDS:
        modules[name] = importlib.import_module("mllmu_nb.commands." + name)
        modules[name].arguments(
            subparsers.add_parser(name, help=modules[name].SUMMARY, description=modules[name].SUMMARY)
        )
    options = parser.parse_args(arguments)
    try:
        return modules[options.command].main(options)
    except KitError as error:
        print("error: " + str(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    # A command that is told to end takes the processes it has started along, as it does after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *told: sys.exit(143))
    sys.exit(main())
