"""The command ``mdrelax``, also as ``python -m mdrelax``."""

import signal


def main() -> None:
    """Load the commands and run one; Ctrl-C while they are loaded ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as it is in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mdrelax import cli

    cli.main()


if __name__ == "__main__":
    main()
