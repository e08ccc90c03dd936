"""The pocket teacher: a small ViT pre-trained on images that this project draws itself (`vfmgl pretrain`)."""
