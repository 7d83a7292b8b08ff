"""The readers of data formats: one module, or a few, per format."""
