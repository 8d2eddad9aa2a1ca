"""Training: the index, and segmentation networks, encoders."""
