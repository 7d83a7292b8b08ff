"""Versioned artifact directories: manifests, atomic publication, lineage and stores."""
