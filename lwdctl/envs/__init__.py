"""Simulator adapters and scripted experts: their contracts, and a table of each."""
