"""A package that adds one of each to lwdctl: reader, environment, two policies, denoiser."""
