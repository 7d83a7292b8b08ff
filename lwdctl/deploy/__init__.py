"""Exported policies: written with torch, run with NumPy and ONNX Runtime alone."""
