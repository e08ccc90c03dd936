"""The pocket teacher: a small ViT pre-trained on images that this project draws itself (`python -m vfmgl_lib.pretrain`)."""
