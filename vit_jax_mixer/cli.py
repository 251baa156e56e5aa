"""What every command shares: how it starts and how it ends."""

import contextlib
import copy
import faulthandler
import io
import itertools
import logging as std_logging
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from absl import flags, logging

from vit_jax_mixer import plugins, startup
from vit_jax_mixer.errors import UserError, printable

T = TypeVar("T")
_COMMON = flags.FlagValues()  # of all commands
_MODULE = flags.DEFINE_list(
    "module", [], "Modules that a model's description may name; of this folder, or installed.", flag_values=_COMMON
)
_KEEP_MEMORY = flags.DEFINE_bool(
    "keep_memory", True, "On CPUs, keep freed memory for the next step: faster.", flag_values=_COMMON
)
_SECONDS, _SECONDS_AFTER_ERROR = 60, 10  # that the end of the process may take
program = ""  # that has all commands, where one was begun by it, as vit-mixer


def run(
    main: Callable[[Any], None],
    values: flags.FlagValues = flags.FLAGS,
    parse: Callable[[Sequence[str]], Any] | None = None,
    interrupted: str = "interrupted.",
    more_help: Callable[[Sequence[str]], str] = lambda argv: "",
) -> None:
    """Run a command; an error that the user can mend ends it with one sentence and exit code 1.

    Args:
        main: gets what is left of the command line, or what ``parse`` makes of it.
        values: the command's own flags, so that several commands can be imported into one process.
        parse: takes the flags from the command line; `parse_flags` if not given.
        interrupted: is printed when Ctrl-C ends it.
        more_help: is printed after the flags, for a command line that asks for help.
    """
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    shown = sys.unraisablehook
    sys.unraisablehook = lambda found: "Event loop is closed" in str(found.exc_value) or shown(found)
    with _ending():
        _guarded(main, values, parse, interrupted, more_help)


def _guarded(
    main: Callable[[Any], None],
    values: flags.FlagValues,
    parse: Callable[[Sequence[str]], Any] | None,
    interrupted: str,
    more_help: Callable[[Sequence[str]], str],
) -> None:
    try:
        if any(re.fullmatch("--?help(short|full)?|-h|-[?]", word) for word in sys.argv[1:]):
            print(*filter(None, [_help(values), more_help(sys.argv)]), sep="\n")
        else:
            _quiet()
            startup.keep_programs()
            plugins.look_in(Path.cwd())
            given = parse(sys.argv) if parse else parse_flags(sys.argv, values)
            if _COMMON.is_parsed() and _KEEP_MEMORY.value:
                startup.keep_memory()  # of a process that is one command: it cannot be undone
            main(given)
    except (UserError, flags.Error) as error:
        sys.exit("error: " + typed(printable(error, keep="\n")))
    except KeyboardInterrupt:
        sys.exit(interrupted)
    except BrokenPipeError:  # the reader has had enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the last flush has a place
        sys.exit(1)
    except (RuntimeError, AssertionError) as error:
        if sentence := _no_accelerator():
            raise SystemExit(f"error: {sentence}") from error
        raise


@contextmanager
def _ending() -> Iterator[None]:
    """End the process some seconds after the block, should threads or exit hooks of a library never end.

    By then all that the command wrote is complete; after an error, nothing more is to be had.
    """
    code, seconds = 1, _SECONDS_AFTER_ERROR
    try:
        yield
        code, seconds = 0, _SECONDS
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        timer = threading.Timer(seconds, _end, [code])
        timer.daemon = True  # so that nothing waits for it
        timer.start()
        if hasattr(signal, "alarm"):
            signal.alarm(seconds + 5)  # ends what hangs outside of Python, where no thread of it runs


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # as of a reader who has gone
            stream.flush()
    os._exit(code)


def parse_flags(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Take a command's own flags, those of all and those of the libraries from a command line; return what is left.

    What it names of a user's own code may be imported.
    """
    both = flags.FlagValues()
    both.append_flag_values(values)
    both.append_flag_values(_COMMON)
    if values is not flags.FLAGS:
        both.append_flag_values(flags.FLAGS)
    left = both(argv)
    for each in (values, _COMMON, flags.FLAGS):
        each.mark_as_parsed()
    plugins.allow(*_MODULE.value)
    plugins.allow_all_in(argv)
    if logging.get_verbosity() > logging.FATAL:
        std_logging.getLogger("concurrent.futures").setLevel(std_logging.NOTSET)
    return left


def keeps_memory(argv: Sequence[str]) -> bool:
    """Say whether a command line leaves --keep_memory as it is, without a look at the command's own flags."""
    values = copy.deepcopy(_COMMON)
    values(argv, known_only=True)
    return bool(values.keep_memory)


def _quiet() -> None:
    """Keep the libraries' chatter away, until a flag as --verbosity=0 asks for it.

    What a user must know comes as an exception.
    """
    logging.use_absl_handler()
    logging.set_verbosity(logging.FATAL)
    # After a save that failed, Orbax's threads talk to each other about it, in hundreds of tracebacks.
    std_logging.getLogger("concurrent.futures").setLevel(std_logging.CRITICAL)


def _help(values: flags.FlagValues) -> str:
    """Return what the command's own text says, and its flags with what they are if not given."""
    about = typed((sys.modules["__main__"].__doc__ or "").strip())
    flags_of = lambda each: [each[name] for name in sorted(each) if name not in ("flagfile", "undefok")]  # absl's own
    own = flags_of(values) + flags_of(_COMMON)
    shown = lambda flag: f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}={flag.serialize().partition('=')[2]}"
    rows = {shown(flag): flag.help for flag in own}
    return "\n".join([filled(about), "", *in_columns(rows.items()), "", "Libraries log with --verbosity=0."])


def typed(text: str) -> str:
    """Return a text with its commands as they are typed here: those of `program`, if it began this one."""
    name = lambda match: f"{program} {'train' if match[1] == 'main' else match[1]}"
    return re.sub(r"python -m vit_jax_mixer\.(\w+)", name, text) if program else text


def in_columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Return lines of names and what they mean, wrapped as the terminal wants it; a long name has its line alone."""
    rows, columns = list(rows), _columns()
    width = max((len(left) for left, _ in rows if len(left) <= columns // 2 - 4), default=0)
    text = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, max(columns - width - 4, 20), break_on_hyphens=False) or [""]
        if len(left) > width:
            wrapped = ["", *wrapped] if right else [""]
        text += [
            f"  {name:{width}}  {part}".rstrip() for name, part in itertools.zip_longest([left], wrapped, fillvalue="")
        ]
    return text


def filled(text: str) -> str:
    """Return paragraphs as wide as the terminal wants them, also those of two columns; what is indented stays."""

    def fill(paragraph: str) -> str:
        rows = [line.split("  ", 1) for line in paragraph.split("\n")]
        if paragraph.startswith(" "):
            return paragraph
        if all(len(row) == 2 for row in rows):
            return "\n".join(in_columns((left, right.strip()) for left, right in rows))
        return textwrap.fill(paragraph, _columns(), break_long_words=False, break_on_hyphens=False)

    return "\n\n".join(map(fill, text.split("\n\n")))


def _columns() -> int:
    return max(shutil.get_terminal_size().columns, 40)


def _no_accelerator() -> str:
    """Return what to say of an accelerator that is asked for and not there; '' if it is, or JAX is not in use."""
    try:  # asked anew, since JAX takes its own frames out of tracebacks, so that they tell little
        jax = sys.modules.get("jax")
        _ = jax and jax.devices()
        return ""
    except (RuntimeError, AssertionError) as found:
        error = found
    asked = os.environ.get("JAX_PLATFORMS", "")
    said = " ".join(str(error).split("(set JAX_PLATFORMS")[0].split()) or "it finds none"
    return (
        f"JAX cannot use {f'JAX_PLATFORMS={asked}' if asked else 'the devices of this machine'} here ({said}); "
        "`env -u JAX_PLATFORMS python -c 'import jax; print(jax.devices())'` shows what it sees: set JAX_PLATFORMS to "
        "cpu, cuda, rocm or tpu, of what is there, unset it, or install the JAX that knows the accelerator."
    )
