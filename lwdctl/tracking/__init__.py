"""Experiment trackers: what a run logs, sent to the programs that people watch runs in."""
