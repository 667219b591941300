"""Compiled programs, kept beside the runs: the second start does not compile again."""

import logging
import os
import pathlib
import shutil
import stat
import warnings

import jax

FOLDER = ".jax_cache"

_logger = logging.getLogger(__name__)


def keep_compiled(workdir: str) -> None:
    """Has JAX keep what it compiles in the folder ``.jax_cache`` beside a run's, and look there first.

    What JAX finds there it runs, so the folder must belong to this user, and nobody else may write to
    it; a new one is made that way. Where it is not so there is a warning and no cache; where it cannot
    be made, or the system does not tell whose it is, no cache. If the user has given JAX a folder
    (``JAX_COMPILATION_CACHE_DIR``), that one it is.

    A program that was cut off while it was written, by a kill or a full disk, would trouble every later
    start: once one cannot be read or written, the whole folder is removed.

    Args:
      workdir: folder of the run.
    """
    if jax.config.jax_compilation_cache_dir is not None or not hasattr(os, "geteuid"):
        return
    folder = pathlib.Path(os.path.expanduser(workdir)).absolute().parent / FOLDER
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except (OSError, ValueError):  # the run itself may still be possible, or says why it is not
        return
    if not _only_ours(found):
        _logger.warning(
            "%s is not used: others can write to it, and compiled programs are run as they are",
            folder,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    warnings.showwarning = _removing(folder, warnings.showwarning)


def _only_ours(found: os.stat_result) -> bool:
    """Whether it is a folder (not a link) of this user's to which nobody else may write."""
    others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not others_write


def _removing(folder: pathlib.Path, show):
    """``warnings.showwarning`` that removes the folder where JAX warns of it (and compiles anew)."""

    def show_or_remove(message, *rest, **options):
        if "persistent compilation cache entry" in str(message):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            show(message, *rest, **options)

    return show_or_remove
