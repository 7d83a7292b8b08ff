"""Ours beside the library it could have used, both timed in one run."""
