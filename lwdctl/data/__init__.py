"""Demonstrations: reading, downloading and exporting them, and batches of them for training."""
