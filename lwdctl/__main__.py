"""`python -m lwdctl`."""

from __future__ import annotations

import sys

from lwdctl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
