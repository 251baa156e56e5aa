"""Prepare a TFDS dataset: `tfds.build` runs this in a child process, with the dataset's name.

What TFDS prints goes to stderr; stdout gets one JSON object, whose `failure` is a sentence or null.
"""

import errno
import json
import os
import sys
import textwrap
from typing import Any

from vit_jax_mixer.data.sources.tfds import find_builder
from vit_jax_mixer.errors import UserError

_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)


def main(place: str) -> str | None:
    """Prepare the dataset; return what went wrong, in one sentence."""
    try:
        builder = find_builder(place)
    except UserError as error:
        return str(error)
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # a thousand datasets fail in as many ways; each is to be one sentence
        return f"tfds:{place} {_explain(builder, error)}"
    found = {form.value for form in builder.info.available_file_formats()}
    if not found & {"array_record", "tfrecord"}:  # TFDS leaves what is there as it is
        return (
            f"tfds:{place} is in {builder.data_path} already, as {', '.join(found)}; move that away to build it anew."
        )
    return None


def _explain(builder: Any, error: BaseException) -> str:
    """Say why a dataset could not be prepared, and what to do."""
    reason = textwrap.shorten(str(error), 600)
    folder = builder.data_path
    causes = list(_causes(error))
    missing = next((e.name for e in causes if isinstance(e, ImportError) and e.name), None)
    if missing:
        package = missing.partition(".")[0]
        return (
            f"needs the package {package} to be prepared; `pip install {package}` and build again, downloads are kept."
        )
    system = next((e for e in causes if isinstance(e, OSError) and e.errno in _ERRNOS), None)
    if system or "Not enough disk space" in reason:
        return f"cannot be written to {folder} ({reason}); make room there, or set TFDS_DATA_DIR to another folder."
    if "anual" in reason and "dir" in reason and builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return f"has to be downloaded by hand ({reason}); do so and build again."
    modules = {type(e).__module__.partition(".")[0] for e in causes}
    kinds = {type(e).__name__ for e in causes}
    if (
        modules & {"requests", "urllib3"}
        or "DownloadError" in kinds
        or any(isinstance(e, ConnectionError) for e in causes)
    ):
        return f"could not be downloaded ({reason}); check the network, the proxy and the address, and build again."
    if "NonMatchingChecksumError" in kinds:
        return f"was downloaded, but is not what TFDS expects ({reason}); build again, or ask its publisher."
    return f"could not be prepared ({type(error).__name__}: {reason or 'no reason given'})."


def _causes(error: BaseException | None) -> Any:
    while error:
        yield error
        error = error.__cause__ or error.__context__


if __name__ == "__main__":
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # TFDS prints on both; stdout is for the report
    report.write(json.dumps({"failure": main(sys.argv[1])}))
    report.close()
