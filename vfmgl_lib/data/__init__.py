"""Data, whatever the task: one reader of pictures, one of volumes, the manifest, its divisions, and batches (loading)."""
