"""Local training: each centre alone. Its client is the plain one."""

from vfmgl_lib.methods.record import Method

METHODS = (Method("local", "Local only", "each centre alone", order=10, color="#8C8C8C", line="dotted", marker="p"),)
