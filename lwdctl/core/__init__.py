"""Records, errors, strict configuration, registries and seeds; no heavy imports."""
