"""The image files that a person means: a file, those in a folder, or those that a pattern matches."""

import glob
import os

from vit_jax_mixer.data.sources.layout import IMAGE_SUFFIXES, is_system
from vit_jax_mixer.errors import UserError


def find_images(argument: str) -> list[str]:
    """Return the files that an argument stands for: itself, those in a folder, or those that a pattern matches.

    Raises:
        UserError: there are none.
    """
    place = os.path.expanduser(argument)
    if os.path.exists(place):
        found = _in(place)
        if not found:
            raise UserError(f"{argument} holds no image ({', '.join(IMAGE_SUFFIXES)}); name another folder.")
        return found
    if not glob.has_magic(place):
        raise UserError(f"there is no file or folder {argument!r}; name images, folders or patterns as '**/*.jpg'.")
    found = sorted({path for match in glob.glob(place, recursive=True) for path in _in(match)})
    if not found:
        raise UserError(f"no image matches {argument!r}; mend the pattern, in which ** stands for any folders.")
    return found


def _in(path: str) -> list[str]:
    """Return the images below a folder, sorted, without what is hidden or the system's; a file is itself."""
    if not os.path.isdir(path):
        return [path]

    def stop(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename} ({error.strerror}); permit it or name another.") from error

    found = []
    for folder, folders, names in os.walk(path, onerror=stop):
        folders[:] = [name for name in folders if not is_system(name)]
        found += [
            os.path.join(folder, name)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not is_system(name)
        ]
    return sorted(found)
