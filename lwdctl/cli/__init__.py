"""The command line: words to one call, the answer to text or JSON, an exit code."""
