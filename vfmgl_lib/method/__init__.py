"""VFMGL itself: knowledge transfer from the teacher (`hgkt`) and distillation from the shared model (`ddbl`)."""
