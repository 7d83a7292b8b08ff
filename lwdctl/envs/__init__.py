"""Simulator adapters: one file and one table row per simulator."""
