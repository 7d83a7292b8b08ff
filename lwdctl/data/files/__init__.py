"""Opening files of unknown origin safely, and what they hold."""
