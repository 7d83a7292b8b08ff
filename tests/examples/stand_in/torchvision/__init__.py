"""Stands for torchvision, which robomimic imports for its image networks; this test has none."""
