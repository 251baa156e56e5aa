"""What every command shares: how it starts and how it ends."""

import io
import logging as std_logging
import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from vit_jax_mixer.errors import UserError


def run(
    main: Callable[[list[str]], None],
    parse_flags: Callable[[Sequence[str]], list[str]] = flags.FLAGS,
    interrupted: str = "interrupted.",
) -> None:
    """Run a command; an error that the user can mend ends it with one sentence and exit code 1.

    Args:
        main: gets what is left of the command line.
        parse_flags: takes the flags from the command line.
        interrupted: is printed when Ctrl-C ends it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    logging.set_verbosity(logging.FATAL)  # the libraries' chatter; what a user must know comes as an exception
    # After a save that failed, Orbax's threads talk to each other about it, in hundreds of tracebacks.
    std_logging.getLogger("concurrent.futures").setLevel(std_logging.CRITICAL)
    shown = sys.unraisablehook
    sys.unraisablehook = lambda found: "Event loop is closed" in str(found.exc_value) or shown(found)

    def guarded(function, argv):
        try:
            return function(argv)
        except (UserError, flags.Error) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(interrupted)
        except BrokenPipeError:  # the reader has had enough, as in `... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the last flush has a place
            sys.exit(1)

    app.run(lambda argv: guarded(main, argv), flags_parser=lambda argv: guarded(parse_flags, argv))
