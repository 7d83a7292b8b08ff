"""Recipes: a TOML file to a plan of stages, what is up to date, and the run in order."""
