"""Tensor mathematics of VFMGL: each file holds the plain definition beside the form that is used; nothing here knows the project."""
