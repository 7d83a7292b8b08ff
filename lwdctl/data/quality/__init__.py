"""Checks on the numbers of demonstrations, and the report of what they found."""
