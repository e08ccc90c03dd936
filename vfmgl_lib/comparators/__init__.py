"""What VFMGL is compared with."""
