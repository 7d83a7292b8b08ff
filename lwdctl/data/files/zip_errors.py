"""What `zipfile` raises for files that it cannot read."""

from __future__ import annotations

import lzma
import zipfile
import zlib

ZIP_ERRORS = (zipfile.BadZipFile, EOFError, RuntimeError, zlib.error, lzma.LZMAError)
"""What it raises beside OSError and ValueError for a file that is damaged, encrypted or of an
unknown compression (the latter two are RuntimeErrors)."""
