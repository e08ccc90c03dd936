"""Data: the manifest, readers of disk layouts, synthetic centres (phantoms) and batches (loading)."""
