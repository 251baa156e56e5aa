"""Whether worker processes can be started: each of them runs the script again that started it."""

import ast
import sys
from pathlib import Path

from vit_jax_mixer.errors import UserError


def check() -> None:
    """Raise a `UserError` where a script does its work without asking whether it is the main module.

    A worker process would do all of it again, and fail in the middle with a message about something else.
    Notebooks and interpreters have no script that could run again.
    """
    file = getattr(sys.modules["__main__"], "__file__", None)
    if not file or not file.endswith(".py"):
        return
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            break
    else:
        return  # as in a thread
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # it has been changed or removed since
    around = [node for node in ast.walk(tree) if isinstance(node, ast.If) and _spans(node, frame.f_lineno)]
    if any("__name__" in ast.unparse(node.test) for node in around):
        return
    raise UserError(
        f"{file}, line {frame.f_lineno}, starts processes that read data, and each would run the script again; put "
        "its work under `if __name__ == '__main__':`, or set config.loader.workers=0."
    )


def _spans(node: ast.If, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or node.lineno)
